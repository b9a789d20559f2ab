"""A stranger searches: the field's word, as the name of a file, folder, function or class, finds
the right place first.

Names are compared without capitals, hyphens, underscores and a plural's s. The ranking: files and
folders of that name, files whose name has the word, functions and classes of that name, those whose
name has it, private ones. Of equals the shortest name comes first, then the first path in the
alphabet. Only where no name has the whole of a term of several words: files whose path and names
have each of its words.
"""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("gptjax", "configs", "launch")
FINDS = {
    "all-gather": "gptjax/distributed/processes.py",
    "attention mask": "gptjax/model/attention/patterns.py",
    "beam search": "gptjax/generate/beam.py",
    "BLEU": "gptjax/evals/rouge_bleu.py",
    "BPE": "gptjax/data/tokenizers/",
    "checkpoint": "gptjax/training/checkpoint.py",
    "classification head": "gptjax/training/classification/model.py",
    "collective": "gptjax/aot/hlo_cost.py",
    "contamination": "gptjax/evals/contamination.py",
    "context parallel": "gptjax/model/attention/context_parallel.py",
    "cross-entropy": "gptjax/training/loss.py",
    "cuDNN": "gptjax/model/attention/gpu_cudnn.py",
    "decontaminate": "gptjax/decontaminate.py",
    "detokenizer": "gptjax/evals/detokenizers.py",
    "embedding": "gptjax/model/embedding.py",
    "exact match": "gptjax/evals/scorers.py",
    "few-shot": "gptjax/evals/prompts.py",
    "finetune": "gptjax/finetune.py",
    "flash attention": "gptjax/model/attention/gpu_flash.py",
    "GELU": "gptjax/config/layer.py",
    "gradient accumulation": "gptjax/training/step.py",
    "HellaSwag": "gptjax/evals/tasks/hellaswag.py",
    "HLO cost": "gptjax/aot/hlo_cost.py",
    "KV cache": "gptjax/model/kv_cache.py",
    "layer norm": "gptjax/config/layer.py",
    "learning-rate schedule": "gptjax/training/schedule.py",
    "lm_eval": "gptjax/lm_eval.py",
    "log-likelihood": "gptjax/evals/loglikelihood.py",
    "mesh": "gptjax/sharding/device_mesh.py",
    "mixture": "gptjax/data/mixture.py",
    "GGUF": "gptjax/data/tokenizers/gguf_file.py",
    "MLP": "gptjax/model/mlp.py",
    "experts": "gptjax/model/experts.py",
    "n-gram": "gptjax/curation/ngrams.py",
    "optimizer": "gptjax/training/optimizer.py",
    "packing": "gptjax/data/packing.py",
    "Parquet": "gptjax/data/sources/files.py",
    "perplexity": "gptjax/evals/perplexity.py",
    "preemption": "gptjax/distributed/preemption.py",
    "prefill": "gptjax/model/inference.py",
    "rotary": "gptjax/model/rotary.py",
    "RMSNorm": "gptjax/config/layer.py",
    "remat": "gptjax/model/gpt.py",
    "rendezvous": "gptjax/distributed/rendezvous.py",
    "ROUGE": "gptjax/evals/rouge_bleu.py",
    "safetensors": "gptjax/weights/safetensors.py",
    "sampling": "gptjax/generate/sampling.py",
    "scaling law": "gptjax/sweeps/scaling_fit.py",
    "SentencePiece": "gptjax/data/tokenizers/sentencepiece_tokenizer.py",
    "sharding": "gptjax/sharding/",
    "Slurm": "launch/slurm.py",
    "splash attention": "gptjax/model/attention/tpu_splash.py",
    "step time": "gptjax/aot/step_time.py",
    "streaming": "gptjax/generate/streaming.py",
    "streaming detokenizer": "gptjax/generate/streaming.py",
    "temperature": "gptjax/generate/sampling.py",
    "tokenizer": "gptjax/data/tokenizers/",
    "top-p": "gptjax/generate/sampling.py",
    "topology": "gptjax/sharding/topology.py",
    "train state": "gptjax/training/state.py",
    "validation split": "gptjax/data/validation_split.py",
    "wandb": "gptjax/sweeps/wandb.py",
    "weight decay": "gptjax/training/optimizer.py",
    "zero-shot": "gptjax/training/classification/zero_shot.py",
}


def normalize(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("s")


@functools.cache
def tree() -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """The folders, and (path, names of its functions and classes) of each file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    files = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        names = tuple(node.name for node in nodes if isinstance(node, kinds))
        files.append((path.relative_to(ROOT).as_posix(), names))
    folders = {path.rpartition("/")[0] + "/" for path, _ in files}
    return tuple(sorted(folders)), tuple(files)


def search(term: str) -> list[str]:
    """Paths that the term finds, best first."""
    whole, words = normalize(term), [normalize(word) for word in re.split(r"[^\w]", term)]
    folders, files = tree()
    ranked = [(0, 0, folder) for folder in folders if normalize(folder.split("/")[-2]) == whole]
    for path, names in files:
        hits, stem = [], normalize(pathlib.PurePath(path).stem)
        if whole in stem:
            hits.append((0 if stem == whole else 1, len(stem)))
        for name in names:
            if whole in normalize(name):
                rank = 2 if normalize(name) == whole else 3
                hits.append((4 if name.startswith("_") else rank, len(name)))
        if hits:
            ranked.append((*min(hits), path))
        elif all(
            any(word in normalize(part) for part in (*path[:-3].split("/"), *names))
            for word in words
        ):
            ranked.append((5, len(stem), path))
    return [path for *_, path in sorted(ranked)]


@pytest.mark.parametrize("term", FINDS)
def test_the_word_finds_the_file(term):
    found = search(term)
    assert found and found[0].startswith(FINDS[term]), found[:5]
