"""The Kubernetes kit as `kubectl kustomize` renders it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fleetlm.testing import DnsServer
from tests.kits.conftest import find_tool
from tests.support.guides import ROOT
from tests.support.kits import DEPLOY, Program, complaints, image_name

pytestmark = pytest.mark.kits

FOLDER = DEPLOY / "kubernetes"
KITS = {
    "base": "base",
    "gpu-ranks": "overlays/gpu-ranks",
    "ops": "overlays/ops",
    "statefulset": "overlays/statefulset",
}
VERSIONS = ("1.30", "1.34", "1.37")
"""Of Kubernetes: 1.30 has `sleep` in `preStop` by default, 1.34 as stable; the last is the newest known."""
UID = 10001
OPS = ROOT / "fleetlm" / "ops" / "application.py"

Manifest = dict[str, Any]


@pytest.fixture(scope="session", params=KITS)
def kit(request: pytest.FixtureRequest, tool: Callable[..., str]) -> list[Manifest]:
    """The rendered objects of one kit."""
    find_tool("kubectl")
    return list(yaml.safe_load_all(tool("kubectl", "kustomize", FOLDER / KITS[request.param])))


def of_kind(kit: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in kit if each["kind"] in kinds]


def named(kit: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [each for each in of_kind(kit, kind) if each["metadata"]["name"] == name]
    return found


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def workloads(kit: list[Manifest]) -> list[Manifest]:
    return of_kind(kit, "Deployment", "StatefulSet")


def containers(kit: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each container with the spec of its pod."""
    for workload in workloads(kit):
        for container in pod(workload)["containers"]:
            yield pod(workload), container


def environment(kit: list[Manifest], container: Manifest) -> dict[str, str]:
    """The variables of a container, those of its ConfigMap included."""
    env: dict[str, str] = {}
    for source in container["envFrom"]:
        env |= named(kit, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in container["env"]:
        env[each["name"]] = each.get("value", "10.244.0.7")  # that of a field is the pod's address
    return env


def program(kit: list[Manifest], spec: Manifest, container: Manifest) -> Program:
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    return Program(
        f"kubernetes {container['name']}",
        container["command"],
        image_name(container["image"]),
        environment(kit, container),
        spec["terminationGracePeriodSeconds"],
        pre_stop,
        {kind: probe["exec"]["command"] for kind, probe in probes.items() if "exec" in probe},
    )


def matches(selector: Manifest, labels: Manifest) -> bool:
    wanted = selector.get("matchLabels", selector)
    return bool(wanted) and wanted.items() <= labels.items()


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_fits_the_strict_schema(
    kit: list[Manifest], version: str, library: Callable[[str], Any]
) -> None:
    validate = library("kubernetes_validate").validate
    for each in kit:
        validate(each, version, strict=True)


def test_a_misspelt_field_would_be_found(kit: list[Manifest], library: Callable[[str], Any]) -> None:
    wrong = copy.deepcopy(named(kit, "Service", "fleetlm-nodes"))
    wrong["spec"]["publishNotReadyAddress"] = wrong["spec"].pop("publishNotReadyAddresses")
    with pytest.raises(library("kubernetes_validate").ValidationError):
        library("kubernetes_validate").validate(wrong, VERSIONS[-1], strict=True)


# ── nodes ────────────────────────────────────────────────────────────────────────────────────────


def test_every_container_starts_is_probed_and_has_the_time_to_leave(kit: list[Manifest]) -> None:
    found = [
        each for spec, container in containers(kit) for each in complaints(program(kit, spec, container))
    ]
    assert found == []


def test_the_query_is_the_name_of_the_headless_service_of_all_pods(kit: list[Manifest]) -> None:
    for _, container in containers(kit):
        service = named(kit, "Service", environment(kit, container)["DNS_CLUSTER_QUERY"])
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        for workload in workloads(kit):
            assert matches(service["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"])


def test_requests_go_to_ready_front_ends_alone(kit: list[Manifest]) -> None:
    service = named(kit, "Service", "fleetlm-web")["spec"]
    assert not service.get("publishNotReadyAddresses")
    assert service.get("clusterIP") != "None"
    served = [
        each["metadata"]["name"]
        for each in workloads(kit)
        if matches(service["selector"], each["spec"]["template"]["metadata"]["labels"])
    ]
    assert served == ["fleetlm-web"]


def test_every_port_is_the_one_on_which_the_container_listens(kit: list[Manifest]) -> None:
    for workload in workloads(kit):
        taken = []
        for container in pod(workload)["containers"]:
            ports = {each["name"]: each["containerPort"] for each in container["ports"]}
            settings = program(kit, pod(workload), container).settings
            nodes = [port for name, port in ports.items() if name.startswith("fleetlm")]
            assert nodes == [settings.own_ports[0]]
            taken += nodes
            if "http" in ports:
                command = container["command"]
                assert int(command[command.index("--port") + 1]) == ports["http"]
        assert len(taken) == len(set(taken)), "two containers of a pod share its address"
        assert settings.base_port in taken
        for service in of_kind(kit, "Service"):
            labels = workload["spec"]["template"]["metadata"]["labels"]
            if matches(service["spec"]["selector"], labels):
                names = {each["name"] for one in pod(workload)["containers"] for each in one["ports"]}
                assert {each["targetPort"] for each in service["spec"]["ports"]} <= names


def test_the_network_policy_covers_the_range_of_ports_both_ways_and_dns(kit: list[Manifest]) -> None:
    policy = named(kit, "NetworkPolicy", "fleetlm-nodes")["spec"]
    settings = [program(kit, spec, container).settings for spec, container in containers(kit)]
    first, last = settings[0].node_ports
    ways = [policy["ingress"][0], policy["egress"][0]]
    for way, side in zip(ways, ("from", "to"), strict=True):
        (port,) = way["ports"]
        assert (port["port"], port.get("endPort", port["port"])) == (first, last)
        for workload in workloads(kit):
            labels = workload["spec"]["template"]["metadata"]["labels"]
            assert matches(way[side][0]["podSelector"], labels)
            assert matches(policy["podSelector"], labels)
    dns = policy["egress"][1]
    assert {(each["protocol"], each["port"]) for each in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert "to" not in dns


def test_ranks_have_the_slots_from_zero_on(kit: list[Manifest]) -> None:
    for workload in workloads(kit):
        slots = [program(kit, pod(workload), one).settings.node_slot for one in pod(workload)["containers"]]
        assert slots in ([None], [0, 1, 2, 3])


def test_probes_over_http_ask_the_ops_listener_and_never_for_liveness(kit: list[Manifest]) -> None:
    paths = set(re.findall(r'Route\("(/health/\w+)"', OPS.read_text(encoding="utf-8")))
    for spec, container in containers(kit):
        settings = program(kit, spec, container).settings
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        asked = [container[f"{kind}Probe"].get("httpGet") for kind in ("startup", "readiness")]
        assert all(asked) if settings.ops else not any(asked)
        assert "exec" in container["livenessProbe"]
        for probe in filter(None, asked):
            assert probe["path"].partition("?")[0] in paths
            assert settings.ops == f"*:{ports[probe['port']]}"
            assert settings.ops_token is not None


# ── life and death ───────────────────────────────────────────────────────────────────────────────


def test_selectors_labels_and_budgets_belong_together(kit: list[Manifest]) -> None:
    budgets = of_kind(kit, "PodDisruptionBudget")
    for workload in workloads(kit):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert matches(workload["spec"]["selector"], labels)
        assert len([each for each in budgets if matches(each["spec"]["selector"], labels)]) == 1
        (spread,) = pod(workload)["topologySpreadConstraints"]
        assert matches(spread["labelSelector"], labels)
    assert {each["spec"]["maxUnavailable"] for each in budgets} == {1}


def test_an_update_replaces_one_pod_at_a_time(kit: list[Manifest]) -> None:
    for workload in workloads(kit):
        spec = workload["spec"]
        assert spec["replicas"] >= 2, "one node alone is never ready with --min-nodes 1"
        if workload["kind"] == "StatefulSet":
            assert spec["podManagementPolicy"] == "Parallel"
            assert spec["serviceName"] == "fleetlm-nodes"
            assert "strategy" not in spec
            continue
        update = spec["strategy"]["rollingUpdate"]
        assert sorted([update["maxUnavailable"], update["maxSurge"]]) == [0, 1]


def test_only_front_ends_sleep_before_they_stop(kit: list[Manifest]) -> None:
    for _, container in containers(kit):
        assert ("lifecycle" in container) == (container["command"][0] == "uvicorn")


# ── security ─────────────────────────────────────────────────────────────────────────────────────


def test_no_container_has_rights_that_it_does_not_need(kit: list[Manifest]) -> None:
    for spec, container in containers(kit):
        security = spec["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] == security["fsGroup"] == UID
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert "limits" in container["resources"]
        assert "cpu" not in container["resources"]["limits"]
    (account,) = of_kind(kit, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert of_kind(kit, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []


def test_the_cookie_is_a_file_of_a_secret_that_is_not_in_the_kit(kit: list[Manifest]) -> None:
    assert of_kind(kit, "Secret") == []
    for spec, container in containers(kit):
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in spec["volumes"]}
        path = environment(kit, container)["FLEETLM_COOKIE_FILE"]
        folder, _, name = path.rpartition("/")
        secret = volumes[mounts[folder]["name"]]["secret"]
        assert (secret["secretName"], name) == ("fleetlm", "cookie")
        assert secret["defaultMode"] == 0o440
        assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
    sockets = [
        each["name"] for _, one in containers(kit) for each in one["volumeMounts"] if "tmp" in each["name"]
    ]
    assert len(sockets) >= len(set(sockets)) >= max(len(pod(each)["containers"]) for each in workloads(kit))


def test_every_image_has_a_tag(kit: list[Manifest]) -> None:
    for _, container in containers(kit):
        assert container["image"].partition(":")[2] not in ("", "latest")


# ── its answer ───────────────────────────────────────────────────────────────────────────────────


async def test_the_query_finds_the_pods_in_any_namespace(kit: list[Manifest], tmp_path: Any) -> None:
    """The short name is found by the search domains of a pod, without a question too many."""
    from fleetlm.discovery.dns import DnsDiscovery

    conf = tmp_path / "resolv.conf"
    conf.write_text(
        "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", encoding="utf-8"
    )
    (_, container), *_ = containers(kit)
    query = environment(kit, container)["DNS_CLUSTER_QUERY"]
    async with DnsServer(ttl_s=5) as server:
        server.set(f"{query}.shop.svc.cluster.local", ["10.244.1.7", "10.244.2.9"])
        discovery = DnsDiscovery(query, server=(server.host, server.port), resolv_conf=conf)
        assert (await discovery.lookup()).addresses == ("10.244.1.7", "10.244.2.9")
        assert {name for name, _ in server.queries} == {f"{query}.shop.svc.cluster.local"}
