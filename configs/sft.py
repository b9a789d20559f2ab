"""Recipes of supervised fine-tuning on conversations: `sft`, and those of InstructGPT (Ouyang et
al. 2203.02155, section 3.5 and appendix C.1).

InstructGPT trains for 16 epochs with a residual dropout of 0.2 and a cosine to a tenth of the
learning rate, without a warm-up: 9.65e-6 and batches of 32 for 1.3B and 6B parameters, 5.03e-6 and
8 for 175B. Its validation loss rises after the first epoch; the checkpoint was chosen by the reward
model's score. The paper's batches count demonstrations, one a row."""

from gptjax.config.chat import Conversations
from gptjax.config.schema import Dropout
from gptjax.config.sft import Sft

TRAIN = "conversations.jsonl"


def sft() -> Sft:
    """Any conversations: 3 epochs, packed rows."""
    return Sft(name="sft", task=Conversations(train=TRAIN))


def instructgpt_sft() -> Sft:
    """InstructGPT's 1.3B and 6B models."""
    return _instructgpt("instructgpt_sft", 9.65e-6, 32)


def instructgpt_sft_175b() -> Sft:
    """InstructGPT's 175B model."""
    return _instructgpt("instructgpt_sft_175b", 5.03e-6, 8)


def _instructgpt(name: str, peak_lr: float, batch_rows: int) -> Sft:
    return Sft(
        name=name,
        task=Conversations(
            train=TRAIN, rows="single", epochs=16, batch_rows=batch_rows, peak_lr=peak_lr
        ),
        dropout=Dropout(residual=0.2),
    )


SFT = {recipe.__name__: recipe for recipe in (sft, instructgpt_sft, instructgpt_sft_175b)}
