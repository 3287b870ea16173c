// Vercel's AI SDK in a process of its own; see ../outside.py. A line of JSON in, a line out.
// In: url, key, model, prompt or messages; `how`: generate, stream, object, streamObject; tools: true; maxRetries; leave: pieces.
import { createInterface } from 'node:readline'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { APICallError, RetryError, generateText, Output, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'

globalThis.AI_SDK_LOG_WARNINGS = false
const weather = z.object({ city: z.string(), degrees: z.number().int() })
const monotonic = () => Number(process.hrtime.bigint()) / 1e9

async function call(what) {
  const noria = createOpenAICompatible({
    name: 'noria', baseURL: what.url, apiKey: what.key, includeUsage: true, supportsStructuredOutputs: true
  })
  const called = []
  const leaving = new AbortController()
  const asked = {
    model: noria(what.model), prompt: what.prompt, maxRetries: what.maxRetries ?? 0, abortSignal: leaving.signal
  }
  if (what.schema) asked.output = Output.object({ schema: weather })
  if (what.tools) {
    asked.stopWhen = stepCountIs(3)
    asked.tools = {
      get_weather: tool({
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => { called.push(city); return `21 in ${city}` }
      })
    }
  }
  if (!what.stream) {
    const done = await generateText(asked)
    return { text: done.text, called, usage: done.usage, finish: done.finishReason, object: what.schema && done.output }
  }
  const pieces = []
  let failed
  const done = streamText({ ...asked, onError: ({ error }) => { failed = error } })
  for await (const piece of done.textStream) {
    pieces.push(piece)
    if (what.leave === pieces.length) {
      const left = monotonic()
      leaving.abort()
      return { left }
    }
  }
  if (failed) return { ...told(failed), text: pieces.join('') }
  return {
    text: pieces.join(''), pieces: pieces.length, called, usage: await done.usage, finish: await done.finishReason,
    object: what.schema && await done.output
  }
}

function told(error) {
  const last = RetryError.isInstance(error) ? error.lastError : error
  const raised = { error: last.name ?? 'none', message: last.message ?? JSON.stringify(last), code: last.code }
  if (!APICallError.isInstance(last)) return raised
  return { ...raised, status: last.statusCode, code: last.data?.error?.code, retryable: last.isRetryable }
}

for await (const line of createInterface({ input: process.stdin })) {
  const answer = await call(JSON.parse(line)).catch(told)
  console.log('> ' + JSON.stringify(answer))
}
