"""The host as a device, its kernels compiled once per test session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernels import compiler, host
from kernels.compiler import NoCompilerError
from kernels.operation import OPERATIONS, Library, Operation
from tests.kernels.bed import Bed


@pytest.fixture(scope="session")
def host_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Operation, str], bytes]:
    """A `Library` builder for the host, all operations compiled into one folder."""
    folder = tmp_path_factory.mktemp("kernels")
    try:
        host.find_compiler()
    except NoCompilerError as error:
        pytest.skip(str(error))

    def image(operation: Operation) -> tuple[str, bytes]:
        return operation.name, bytes(host.build_library(operation, folder=folder))

    with ThreadPoolExecutor(2) as pool:
        images = dict(pool.map(image, OPERATIONS))
    return lambda operation, sm: images[operation.name]


@pytest.fixture
def calls() -> host.HostCalls:
    return host.HostCalls()


@pytest.fixture
def bed(calls: host.HostCalls, host_images: Callable[[Operation, str], bytes]) -> Iterator[Bed]:
    """Host memory with guards, which are checked at the end."""
    with host.open_context(calls) as context:
        yield Bed(context, Library(context, host_images))
        calls.check_guards()


@pytest.fixture(scope="session")
def nvcc() -> compiler.Nvcc:
    path = compiler.find_nvcc()
    if path is None:
        pytest.skip("no nvcc (CUDA toolkit): the kernels cannot be compiled for cards here")
    return compiler.Nvcc(path)
