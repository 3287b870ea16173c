"""Memory is predicted from shapes and refused with the number."""

import json

import pytest
from msgspec.structs import replace

from noria.adapt import memory
from noria.contracts.error import RequestError
from noria.contracts.training import Lora, Schedule, TrainingJob

SMOLLM2 = memory.ModelShape(layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head=64, vocabulary=49152, tied=True)
JOB = TrainingJob(id="t", method="sft", base="b", weights="w", weights_sha256="", dataset="d", train="t", schedule=Schedule())


def test_the_parameters_are_those_of_the_model_and_of_pefts_adapter():
    assert SMOLLM2.parameters == 134_515_008  # what transformers counts
    assert SMOLLM2.trainable(Lora(r=16)) == 4_884_480  # what PEFT counts


def test_more_of_anything_takes_more():
    small = memory.predict(SMOLLM2, JOB).training
    for bigger in (
        replace(JOB, schedule=Schedule(batch=16)), replace(JOB, schedule=Schedule(max_length=512)), replace(JOB, lora=Lora(r=64)),
    ):  # fmt: skip
        assert memory.predict(SMOLLM2, bigger).training > small
    assert memory.predict(SMOLLM2, JOB, longest=64).training < small


def test_what_does_not_fit_is_refused_with_the_number():
    prediction = memory.predict(SMOLLM2, JOB)
    memory.demand(prediction, 0, free=prediction.peak * 2)
    with pytest.raises(RequestError, match=rf"{prediction.peak / 1e9:.2f} GB .* the limit is 1.00 GB") as e:
        memory.demand(prediction, 10**9, free=10**12)
    assert e.value.code == "memory_exceeded"
    with pytest.raises(RequestError, match=r"2\.00 GB are free"):
        memory.demand(prediction, 10**12, free=2 * 10**9)


def test_shapes_are_read_from_gguf_and_from_a_folder(tmp_path, gguf, metadata, tensors):
    found = memory.shape_of(gguf(tmp_path / "a.gguf", metadata, {"token_embd.weight": tensors[0]}))
    assert found == memory.ModelShape(2, 8, 16, 4, 2, 2, 4, True)
    config = {
        "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 4, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert memory.shape_of(tmp_path) == found
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="does not describe"):
        memory.shape_of(tmp_path)
