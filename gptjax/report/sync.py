"""Copies of a run's record in a bucket: it is written locally, since objects cannot be appended to,
and then uploaded.
"""

from pathlib import Path

from gptjax.data.tokenizers import gpt1_bpe, gpt2_bpe, json_tokenizer
from gptjax.runtime import run_dir

FILE_NAMES = (
    "config.json",
    "data.json",
    run_dir.CHOSEN,
    "tokenizer.model",
    json_tokenizer.FILE,
    json_tokenizer.CONFIG_FILE,
    *gpt1_bpe.FILES.digests,
    *gpt2_bpe.FILES.digests,
    "metrics.jsonl",
    "loss.png",
)


class BucketSync:
    """Copies the files of `directory` to and from `bucket`; does nothing if that is None. For
    process 0.
    """

    def __init__(self, directory: Path, bucket: str | None):
        self._directory, self.bucket = directory, bucket

    def download(self) -> None:
        """Downloads the files of the bucket, which are as new as its newest checkpoint, from which
        the run continues.
        """
        if self.bucket is not None:
            from etils import epath

            self._directory.mkdir(parents=True, exist_ok=True)
            for name in FILE_NAMES:
                source = epath.Path(self.bucket) / name
                if source.exists():
                    (self._directory / name).write_bytes(source.read_bytes())

    def upload(self) -> None:
        """Uploads the local files, including TensorBoard's. Call it before a checkpoint is saved,
        so that no checkpoint is newer than its record.
        """
        if self.bucket is not None:
            from etils import epath

            for file in [self._directory / name for name in FILE_NAMES] + sorted(
                (self._directory / "tensorboard").glob("*")
            ):
                if file.exists():
                    (
                        epath.Path(self.bucket) / file.relative_to(self._directory).as_posix()
                    ).write_bytes(file.read_bytes())
