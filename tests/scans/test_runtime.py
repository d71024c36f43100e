import os
import stat
from pathlib import Path

import numba
import pytest
import torch

from postx.models import _panels
from postx.scans import cpu_decay, cpu_diagonal, cpu_tiles, lanes, runtime


def test_threads_are_shared_among_workers():
    assert runtime.default_threads({}, cores=8) == 8
    assert runtime.default_threads({"PYTEST_XDIST_WORKER_COUNT": "2"}, cores=8) == 4
    assert runtime.default_threads({"PYTEST_XDIST_WORKER_COUNT": "16"}, cores=8) == 1
    assert runtime.default_threads({"POSTX_THREADS": "3"}, cores=8) == 3
    for bad in ("0", "-1", "many"):
        with pytest.raises(ValueError, match="POSTX_THREADS: expected a positive integer"):
            runtime.default_threads({"POSTX_THREADS": bad}, cores=8)


def test_one_setting_rules_numba_and_torch():
    before = numba.get_num_threads()
    try:
        runtime.set_threads(1)
        assert (numba.get_num_threads(), torch.get_num_threads()) == (1, 1)
        with pytest.raises(ValueError, match="threads: expected 1 to"):
            runtime.set_threads(0)
    finally:
        runtime.set_threads(before)


def test_cache_falls_back_where_nothing_can_be_written(tmp_path):
    package, home, plain_file = tmp_path / "package", tmp_path / "home", tmp_path / "file"
    package.mkdir()
    home.mkdir()
    plain_file.write_text("")  # a file in the folder's place cannot be written into, not even by root
    assert runtime.cache_folder(package, home) == package / "__pycache__"
    assert runtime.cache_folder(plain_file, home) == home / ".cache" / "numba"
    assert "postx-numba" in runtime.cache_folder(plain_file, plain_file).name


def test_an_edit_of_what_kernels_share_compiles_every_kernel_again():
    shared = b"".join(Path(module.__file__).read_bytes() for module in (lanes, cpu_tiles, _panels))
    base = runtime.KERNELS.parent
    assert runtime.kernel_folder(base, shared) == runtime.KERNELS
    assert runtime.kernel_folder(base, shared + b"#") != runtime.KERNELS
    before = numba.config.CACHE_DIR
    kernel = runtime.jit(lambda x: x + 1)
    assert before == numba.config.CACHE_DIR, "other users of numba keep their own folder"
    for function in (kernel, cpu_decay._scan, cpu_tiles.block, cpu_diagonal._row):
        assert runtime.KERNELS in Path(function.stats.cache_path).parents


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0,
    reason="root may write anywhere; permission bits need a user",
)
def test_read_only_folder_is_seen_as_such(tmp_path):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert runtime.cache_folder(folder, tmp_path) == tmp_path / ".cache" / "numba"
    assert "postx-numba" in runtime.cache_folder(folder, folder).name
