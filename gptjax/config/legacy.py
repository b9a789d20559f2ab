"""Translation of the field names that earlier versions wrote; no other file knows them.

A run's config.json, the config inside each of its checkpoints and a sweep's sweep.json keep the
names of the version that wrote them. They are translated when they are read, so that old runs and
sweeps can still be sampled, evaluated, reported and continued.
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


SWEEP_KEYS = {"about": "description", "sets": "overrides", "check": "holdout"}  # of sweep.json
# record -> path, of those whose fields an override can name
RECORDS_AT = {"Cosine": "train.schedule", "ClassificationTask": "task"}


def translate(leaves: dict[str, Any]) -> dict[str, Any]:
    """Translates the leaves of a stored config (path -> number, string or None, as
    overrides.flatten writes them)."""
    translated = dict(DEFAULTS)
    for path, value in leaves.items():
        if path in VALUES and isinstance(value, str):
            value = VALUES[path].get(value, value)
        if path in RECORD_PATHS and isinstance(value, str):
            value = translate_record(value)
        translated[PATHS.get(path, path)] = value
    return translated


def translate_sweep(record: dict[str, Any]) -> dict[str, Any]:
    """Translates the keys of a sweep.json, and the config fields in its overrides. Values of
    unexpected types are kept for the reader to refuse."""

    def translate_texts(value: Any) -> Any:
        if isinstance(value, list):
            return [translate_texts(part) for part in value]
        return translate_override(value) if isinstance(value, str) else value

    renamed = {SWEEP_KEYS.get(key, key): value for key, value in record.items()}
    lists = ("overrides", "points", "holdout")
    return {k: translate_texts(v) if k in lists else v for k, v in renamed.items()}


def translate_override(text: str) -> str:
    """Translates the path of `path=value`, and its value where that was renamed too."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if path in VALUES:
        values: dict[str, Any] = VALUES[path]
        value = str(values.get(value.strip(), value))
    if path in RECORD_PATHS:
        value = translate_record(value)
    field_paths = PATHS | {
        f"{parent}.{old}": f"{parent}.{new}"
        for name, parent in RECORDS_AT.items()
        for old, new in FIELDS[name].items()
    }
    for old, new in field_paths.items():
        if path == old or path.startswith(f"{old}."):
            path = new + path.removeprefix(old)
            break
    return f"{path}{equals}{value}"


def translate_record(text: str) -> str:
    """Translates the text of a record, `Name(field=value, ...)`. Text that is not one is
    returned unchanged, for the reader to refuse."""
    return _rename(text, RECORDS, FIELDS)


def restore_record(text: str) -> str:
    """The inverse of translate_record: the text of a record as the first version wrote it, which
    digests in the names of files are of."""
    fields = {name: {new: old for old, new in names.items()} for name, names in FIELDS.items()}
    return _rename(text, {new: old for old, new in RECORDS.items()}, fields)


def _rename(text: str, records: dict[str, str], fields: dict[str, dict[str, str]]) -> str:
    """Renames records and their fields in the text of a record. fields: by the record's name of
    today."""
    try:
        tree = ast.parse(text, mode="eval")
        changed = False
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            names = fields.get(RECORDS.get(call.func.id, call.func.id), {})
            if call.func.id in records:
                call.func.id, changed = records[call.func.id], True
            for keyword in call.keywords:
                if keyword.arg in names:
                    keyword.arg, changed = names[keyword.arg], True
        return ast.unparse(tree) if changed else text
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text
