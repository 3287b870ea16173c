"""Nothing that a caller sends reaches a log: allow-listed fields pass, credentials are hidden wherever they stand."""

import json
import logging
import subprocess
import sys

import pytest

from noria.kit.redact import Formatter, scrub, scrub_bytes

SECRET = "s3cr3t-Value-0123456789"
HEADERS = {"authorization": f"Bearer {SECRET}", "x-unheard-of": SECRET, "content-length": "12", "cookie": f"a={SECRET}"}
BODY = {"model": "gpt", "messages": [{"role": "user", "content": f"my pin is {SECRET}"}], "stream": True}


@pytest.mark.parametrize(
    "text",
    [
        f"upstream refused {HEADERS}",
        f"upstream refused {list(HEADERS.items())}",
        f"upstream refused {json.dumps(HEADERS)}",
        f"upstream refused {json.dumps(json.dumps(HEADERS))}",
        f"upstream refused {[(k.encode(), v.encode()) for k, v in HEADERS.items()]}",
        f"body was {json.dumps(BODY)}",
        f"body was {BODY}",
        f"body was {json.dumps(BODY)[:70]}",
        f"Authorization: Bearer {SECRET}",
        f"x-api-key: {SECRET}",
        f"GET http://user:{SECRET}@host/v1?x=1",
        f"GET /login?code={SECRET}&next=/",
        "key sk-proj-s3cr3t-Value-0123456789 was refused",
        f"password={SECRET}",
    ],
)
def test_a_secret_is_hidden_in_every_form_that_a_log_shows_it_in(text):
    assert "s3cr3t" not in scrub(text)


def test_harmless_facts_stay_readable():
    said = scrub(f"upstream refused {HEADERS} for {BODY}")
    assert "'content-length': '12'" in said
    assert "'model': 'gpt'" in said
    assert "'role': 'user'" in said
    for plain in ("model gpt-5: 503 after 2 attempts in 1.5 s", "serving configuration c1:abcdef01", "spool 'n0-w0' is full"):
        assert scrub(plain) == plain


def test_headers_in_an_exception_and_in_its_cause_are_hidden_in_the_traceback():
    try:
        try:
            raise ValueError(f"cannot send {HEADERS}")
        except ValueError as e:
            raise RuntimeError(f"gave up on {list(HEADERS.items())}") from e
    except RuntimeError:
        record = logging.LogRecord("noria", logging.ERROR, "f", 1, "failed with %r", (HEADERS,), sys.exc_info())
    said = Formatter("%(message)s").format(record)
    assert "RuntimeError" in said
    assert "Traceback" in said
    assert SECRET not in said


def test_an_error_that_ends_a_process_or_a_thread_is_scrubbed_too():
    code = (
        "import threading\nfrom noria.kit.redact import install\ninstall('info')\n"
        f"def work(): raise ValueError({str(HEADERS)!r})\n"
        "t = threading.Thread(target=work); t.start(); t.join()\n"
        f"raise ValueError({str(HEADERS)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("ValueError") == 2
    assert "s3cr3t" not in done.stderr.replace(code, "")


def test_a_long_line_is_cut_and_bytes_that_are_no_text_do_no_harm():
    assert len(scrub("x" * 1_000_000)) < 40_000
    assert b"s3cr3t" not in scrub_bytes(b"\xff\xfe " + f"Bearer {SECRET}".encode())
