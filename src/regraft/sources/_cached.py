"""Model repositories in the cache of Hugging Face's hub."""

from __future__ import annotations

from collections.abc import Iterator, Set

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def cached_repositories() -> Iterator[tuple[str, Set[str]]]:
    """Yield the name of each cached model repository that has weights, and its file names; read no file."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    for repository in sorted(cache.repos, key=lambda r: r.repo_id):
        if repository.repo_type == "model":
            files = {file.file_name for revision in repository.revisions for file in revision.files}
            if files.intersection(WEIGHTS):
                yield repository.repo_id, files
