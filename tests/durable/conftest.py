"""A Ceph for the tests of this folder, started once."""

import itertools
from collections.abc import Iterator

import pytest

from forebay.tests.support.ceph import CephCluster, ceph_cluster

_pools = itertools.count(1)


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    """A real Ceph with two OSDs and two replicas. Who breaks it mends it."""
    with ceph_cluster(tmp_path_factory.mktemp("ceph")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_pool(ceph: CephCluster) -> str:
    ceph.create_pool("shared")
    ceph.wait_for_osds(2)
    return "shared"


@pytest.fixture
def pool(ceph: CephCluster) -> str:
    """A pool of the test's own."""
    name = f"pool-{next(_pools)}"
    ceph.create_pool(name)
    ceph.wait_for_osds(2)
    return name
