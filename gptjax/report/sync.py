"""The record of a run in a bucket: kept in a local directory, since objects cannot be appended
to, and copied there."""

from pathlib import Path

from gptjax.data.tokenizers import gpt1_bpe, gpt2_bpe

FILE_NAMES = (
    "config.json",
    "data.json",
    "tokenizer.model",
    *gpt1_bpe.FILES.digests,
    *gpt2_bpe.FILES.digests,
    "metrics.jsonl",
    "loss.png",
)


class BucketSync:
    """Of the files of `directory` in `bucket`; where that is None, there is nothing to do. For
    process 0."""

    def __init__(self, directory: Path, bucket: str | None):
        self._directory, self.bucket = directory, bucket

    def download(self) -> None:
        """Take from the bucket what is there: it is as new as the newest checkpoint, which is
        what a run goes on from."""
        if self.bucket is not None:
            from etils import epath

            self._directory.mkdir(parents=True, exist_ok=True)
            for name in FILE_NAMES:
                source = epath.Path(self.bucket) / name
                if source.exists():
                    (self._directory / name).write_bytes(source.read_bytes())

    def upload(self) -> None:
        """Copy what is here, TensorBoard's files too. Call it before a checkpoint is saved, so
        that none is newer than its record."""
        if self.bucket is not None:
            from etils import epath

            for file in [self._directory / name for name in FILE_NAMES] + sorted(
                (self._directory / "tensorboard").glob("*")
            ):
                if file.exists():
                    (
                        epath.Path(self.bucket) / file.relative_to(self._directory).as_posix()
                    ).write_bytes(file.read_bytes())
