"""The equivalence gate names what is wrong with a served file: the planted faults of issue 4, one by one."""

import pytest

from noria.adapt import equivalence, job
from noria.adapt.equivalence import Fault, Served
from noria.contracts.error import NoriaError


def repeat(finished, wrong=0):
    """A server that answers as the trained model did, but for the first `wrong` rows."""
    return lambda _rows: ["?" if n < wrong else a.answer for n, a in enumerate(finished.answers)]


def check(finished, served, wrong=0):
    return equivalence.check(finished.folder, served, ask=repeat(finished, wrong))


def both(finished):
    return [Served(finished.base, finished.adapter), Served(finished.merged)]


def test_the_files_as_they_were_made_pass(finished):
    finished.pinned()
    for served in both(finished):
        verdict = check(finished, served)
        assert (verdict.equivalent, verdict.agreement, verdict.served_accuracy, verdict.rows) == (True, 1.0, 1.0, 40)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"tokenizer__chat_template": "{{ messages[0].content }}"}, "wrong_template", "chat template"),
        ({"tokenizer__ggml__eos_token_id": 0}, "wrong_eos", "EOS"),
        ({"tokenizer__ggml__tokens": ["<s>", "<unk>", "<|im_end|>", "a"]}, "wrong_tokenizer", "tokenizer"),
        ({"tokenizer__ggml__add_bos_token": True}, "wrong_bos", "BOS"),
    ],
)
def test_a_merged_file_with_other_text_rules_is_refused_by_name(finished, change, code, words):
    finished.write_merged(**change)
    with pytest.raises(Fault, match=words) as e:
        check(finished, Served(finished.merged))
    assert e.value.code == code


def test_an_adapter_on_a_base_with_another_template_is_refused(finished, gguf, metadata, tensors):
    gguf(finished.base, metadata | {"tokenizer.chat_template": "x"}, {"blk.0.attn_q.weight": tensors[2]})
    with pytest.raises(Fault, match="chat template"):
        check(finished, Served(finished.base, finished.adapter))


def test_a_truncated_file_is_refused_by_name(finished):
    for served in both(finished):
        served.told.write_bytes(served.told.read_bytes()[:-16])
        with pytest.raises(NoriaError, match="truncated"):
            check(finished, served)


def test_a_wrong_lora_scale_is_refused_by_name_in_the_file_and_in_the_serving(finished):
    with pytest.raises(Fault, match=r"LoRA scale 0\.5") as e:
        check(finished, Served(finished.base, finished.adapter, scale=0.5))
    assert e.value.code == "wrong_lora_scale"
    finished.write_adapter(alpha=16.0)
    with pytest.raises(Fault, match=r"alpha 16\.0, it was trained with 32") as e:
        check(finished, Served(finished.base, finished.adapter))
    assert e.value.code == "wrong_lora_scale"


def test_a_missing_permutation_of_q_and_k_is_refused_by_name(finished, tensors):
    finished.write_merged(tensors[1])
    finished.write_adapter(tensors[1])
    for served in both(finished):
        with pytest.raises(Fault, match="permutation of q and k is missing") as e:
            check(finished, served)
        assert e.value.code == "qk_permutation_missing"


def test_another_models_weights_are_refused(finished, tensors):
    finished.write_merged(tensors[2])
    with pytest.raises(Fault, match="not the one that was trained"):
        check(finished, Served(finished.merged))


def test_an_adapter_on_another_base_is_refused(finished, gguf, metadata, tensors):
    gguf(finished.base, metadata, {"blk.0.attn_q.weight": tensors[1]})
    with pytest.raises(Fault, match="belongs on the base"):
        check(finished, Served(finished.base, finished.adapter))


def test_a_file_that_the_job_did_not_make_is_refused(finished, gguf, metadata, tensors):
    finished.pinned()
    gguf(finished.merged, metadata | {"general.name": "other"}, {"blk.0.attn_q.weight": tensors[0]})
    with pytest.raises(Fault, match="SHA-256"):
        check(finished, Served(finished.merged))


def test_a_file_that_answers_otherwise_is_refused_with_the_figures(finished):
    assert check(finished, Served(finished.merged), wrong=1).equivalent  # one row of 40 may flip
    with pytest.raises(Fault, match="92% of 40 rows") as e:
        check(finished, Served(finished.merged), wrong=3)
    assert e.value.code == "not_equivalent"


def test_too_few_rows_are_no_verdict(finished):
    finished.answers = finished.answers[:19]
    finished._keep()
    with pytest.raises(Fault, match="too few"):
        check(finished, Served(finished.merged))


def test_what_came_of_it_is_kept_with_the_job(finished):
    check(finished, Served(finished.merged))
    with pytest.raises(Fault):
        check(finished, Served(finished.base, finished.adapter), wrong=8)
    adapter, merged = job.checked_of(finished.folder)
    assert (merged.file, merged.equivalent, merged.agreement, merged.says) == (finished.merged.name, True, 1.0, "")
    assert (adapter.file, adapter.equivalent, adapter.code, adapter.agreement) == (
        finished.adapter.name,
        False,
        "not_equivalent",
        0.8,
    )
    with pytest.raises(Fault):
        check(finished, Served(finished.base, finished.adapter, scale=0.5))
    again = job.checked_of(finished.folder)[0]
    assert (again.code, again.agreement) == ("wrong_lora_scale", None)
    assert "LoRA scale 0.5" in again.says
