"""Configs that earlier versions wrote, in today's words: the one place that knows the old names of
fields.

A run's config.json, and the config inside each of its checkpoints, keep the names of the version
that wrote them;
`translate` makes today's of them, so that old runs are still read, sampled, evaluated and resumed.
"""

import ast
from typing import Any

DEFAULTS = {  # paths that earlier versions did not write, with what those runs did
    "train.optimizer.bias_correction": "moments"
}
PATHS = {  # earlier path -> today's
    "train.ramp": "train.batch_ramp",
    "train.skips_allowed": "train.max_nonfinite_steps",
    "data.held_out": "data.validation",
    "data.across_documents": "data.document_attention",
    "compute.attention": "compute.attention_kernel",
    "compute.layers": "compute.scan_layers",
}
VALUES = {"compute.layers": {"auto": None, "scan": True, "unroll": False}}
RECORDS = {"Task": "ClassificationTask", "Word": "LastWord"}  # earlier name of a record -> today's
FIELDS = {  # record, by today's name -> its fields, earlier -> today's
    "Cosine": {"peak": "peak_lr", "floor": "final_fraction"},
    "Linear": {"peak": "peak_lr"},
    "Constant": {"peak": "peak_lr"},
    "Protocol": {"described_from": "description_min_shots", "wording": "prompt_variant"},
    "ClassificationTask": {"peak": "peak_lr", "warmup": "warmup_fraction"},
}
RECORD_PATHS = (
    "train.schedule",
    "task",
)  # whose values are text of records that RECORDS and FIELDS name


def translate(leaves: dict[str, Any]) -> dict[str, Any]:
    """Leaves of overrides.flatten (path -> number, string or None) with every earlier name made
    today's."""
    translated = dict(DEFAULTS)
    for path, value in leaves.items():
        if path in VALUES and isinstance(value, str):
            value = VALUES[path].get(value, value)
        if path in RECORD_PATHS and isinstance(value, str):
            value = translate_record(value)
        translated[PATHS.get(path, path)] = value
    return translated


def translate_record(text: str) -> str:
    """A record's text `Name(field=value, ...)` in today's words; a text that is none is left for
    the reader to refuse."""
    try:
        tree = ast.parse(text, mode="eval")
        changed = False
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            if call.func.id in RECORDS:
                call.func.id, changed = RECORDS[call.func.id], True
            fields = FIELDS.get(call.func.id, {})
            for keyword in call.keywords:
                if keyword.arg in fields:
                    keyword.arg, changed = fields[keyword.arg], True
        return ast.unparse(tree) if changed else text
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text
