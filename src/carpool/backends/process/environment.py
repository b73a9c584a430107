"""The environment of a worker process: what its C library and its OpenMP are told before they start."""

from __future__ import annotations

from collections.abc import Mapping

# Where glibc is told how to allocate, and of that, whether to ask the kernel for huge pages: 1 for yes.
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"

# How often a thread of GNU OpenMP, which torch and scikit-learn bring, looks for more work before it sleeps,
# and what else says so.
_SPINS, _WAIT_POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
# Its own number is 300,000: at the end of a lone image that takes 20 ms, another 10 ms of a core. A thread that
# never looks has to be woken for each layer, which takes longer than many a layer.
_FEWER = "50000"


def of_worker(environment: Mapping[str, str]) -> dict[str, str]:
    """What is good for a worker, and what this environment says otherwise.

    Huge pages, of 2 MiB: a model's weights are some ten thousand of the usual pages, and what says where each
    is has left the CPU's caches whenever nothing ran for a while. And threads that soon leave a core to whoever
    has work, which here is often the next request on its way.
    """
    told = [one for one in environment.get(_TUNABLES, "").split(":") if one]
    if not any(one.startswith(f"{_HUGE_PAGES}=") for one in told):
        told.append(f"{_HUGE_PAGES}=1")
    its = {**environment, _TUNABLES: ":".join(told)}
    if _WAIT_POLICY not in its:
        its.setdefault(_SPINS, _FEWER)
    return its
