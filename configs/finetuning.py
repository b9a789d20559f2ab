"""Fine-tuning recipes: the twelve tasks of GPT-1 (section 4.2, Tables 2 to 4), one entry each, and
`own`, any labeled file.

Columns are those of TFDS, which local files may share: `--set task.train=FILE --set task.dev=FILE`,
with `task.fields=...` and `task.label=...` where theirs differ. `own` reads the columns text and
label and takes the labels that it finds, with GPT-1's hyperparameters; `task.kind=similarity` with
two fields, or `task.kind=choice` with answers and labels, make it another kind of task. Scores are
the paper's, on the test sets (CoLA, SST-2, MRPC, STS-B and QQP by the GLUE server). Epochs are 3
for all: the paper says so for "most cases" and names no exception.

Story Cloze: the released code trains on 1,497 of the 1,871 stories of the 2016 validation file,
which has labels, and validates on the other 374, split by scikit-learn's train_test_split with a
seed from the order of the file, which TFDS does not keep. Here they are the first 80% and the rest
[chosen]. Both test on the 2016 test file.
"""

from gptjax.config.classification import ClassificationTask
from gptjax.config.finetuning import Finetuning

NLI = ("entailment", "neutral", "contradiction")
YES_NO = ("no", "yes")

TASKS = {
    "sst2": ClassificationTask(
        kind="classification",
        fields=("sentence",),
        label="label",
        labels=("negative", "positive"),
        metric="accuracy",
        tfds="glue/sst2",
        submission="SST-2",
        paper=91.3,
    ),
    "cola": ClassificationTask(
        kind="classification",
        fields=("sentence",),
        label="label",
        labels=("unacceptable", "acceptable"),
        metric="matthews",
        tfds="glue/cola",
        submission="CoLA",
        paper=45.4,
    ),
    "mrpc": ClassificationTask(
        kind="similarity",
        fields=("sentence1", "sentence2"),
        label="label",
        labels=("not_equivalent", "equivalent"),
        metric="f1",
        tfds="glue/mrpc",
        submission="MRPC",
        paper=82.3,
    ),
    "qqp": ClassificationTask(
        kind="similarity",
        fields=("question1", "question2"),
        label="label",
        labels=("not_duplicate", "duplicate"),
        metric="f1",
        tfds="glue/qqp",
        submission="QQP",
        paper=70.3,
    ),
    "stsb": ClassificationTask(
        kind="similarity",
        fields=("sentence1", "sentence2"),
        label="label",
        labels=tuple("012345"),
        metric="pearson",
        tfds="glue/stsb",
        submission="STS-B",
        paper=82.0,
    ),
    "mnli": ClassificationTask(
        kind="entailment",
        fields=("premise", "hypothesis"),
        label="label",
        labels=NLI,
        metric="accuracy",
        tfds="glue/mnli",
        splits=("train", "validation_matched", "test_matched"),
        submission="MNLI-m",
        paper=82.1,
    ),
    "mnli_mm": ClassificationTask(
        kind="entailment",
        fields=("premise", "hypothesis"),
        label="label",
        labels=NLI,
        metric="accuracy",
        tfds="glue/mnli",
        splits=("train", "validation_mismatched", "test_mismatched"),
        submission="MNLI-mm",
        paper=81.4,
    ),
    "snli": ClassificationTask(
        kind="entailment",
        fields=("premise", "hypothesis"),
        label="label",
        labels=NLI,
        metric="accuracy",
        tfds="snli",
        paper=89.9,
    ),
    "scitail": ClassificationTask(
        kind="entailment",
        fields=("premise", "hypothesis"),
        label="label",
        labels=("entails", "neutral"),
        metric="accuracy",
        tfds="sci_tail",
        paper=88.3,
    ),
    "qnli": ClassificationTask(
        kind="entailment",
        fields=("question", "sentence"),
        label="label",
        labels=("entailment", "not_entailment"),
        metric="accuracy",
        tfds="glue/qnli",
        submission="QNLI",
        paper=88.1,
    ),
    "rte": ClassificationTask(
        kind="entailment",
        fields=("sentence1", "sentence2"),
        label="label",
        labels=("entailment", "not_entailment"),
        metric="accuracy",
        tfds="glue/rte",
        submission="RTE",
        paper=56.0,
    ),
    "race_middle": ClassificationTask(
        kind="choice",
        fields=("article", "questions"),
        answers=("options",),
        label="answers",
        labels=tuple("ABCD"),
        metric="accuracy",
        tfds="race/middle",
        splits=("train", "dev", "test"),
        paper=62.9,
    ),
    "race_high": ClassificationTask(
        kind="choice",
        fields=("article", "questions"),
        answers=("options",),
        label="answers",
        labels=tuple("ABCD"),
        metric="accuracy",
        tfds="race/high",
        splits=("train", "dev", "test"),
        paper=57.4,
    ),
    "story_cloze": ClassificationTask(
        kind="choice",
        fields=("context",),
        answers=("endings",),
        label="label",
        labels=("1", "2"),
        metric="accuracy",
        tfds="story_cloze/2016",
        splits=("validation[:80%]", "validation[80%:]", "test"),
        paper=86.5,
    ),
}


def recipe(name: str) -> Finetuning:
    """Returns the recipe of one of GPT-1's tasks."""
    return Finetuning(name=f"gpt1_{name}", task=TASKS[name])


def own_task() -> Finetuning:
    """Returns the recipe for one's own labeled files."""
    return Finetuning(
        name="own",
        task=ClassificationTask(
            kind="classification", fields=("text",), label="label", labels=(), metric="accuracy"
        ),
    )


FINETUNING = {"own": own_task} | {f"gpt1_{name}": lambda name=name: recipe(name) for name in TASKS}
