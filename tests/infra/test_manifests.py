"""Manifests and image: strictly valid, of one version, without secrets; their commands parse."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import yaml
from jsonschema import Draft7Validator

from jobs.submit import check_words
from tests import ROOT, SHARED

INFRA = ROOT / "infra"
CRDS = SHARED / "data" / "kuberay_crds"
KUBERAY = sorted((INFRA / "kuberay").glob("*.yaml"))
JOBS = [path for path in KUBERAY if path.name.startswith("train-")]
VM = INFRA / "ray" / "cluster.yaml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
RAY_VERSION = re.search(
    r"^ray==(.+)$", (INFRA / "constraints.txt").read_text(), re.MULTILINE
).group(1)
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


class UniqueKeys(yaml.SafeLoader):
    """YAML's last of two equal keys wins in silence; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice"
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), UniqueKeys)


def faults(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """What a strict API server would say: unknown fields fail, as with ``--validate=strict``."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            yield f"{where}: {value!r} is neither a whole number nor text"
        elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            yield f"{where}: {value!r} does not match"
        return
    wanted = TYPES.get(schema.get("type", ""))
    if wanted and (
        not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)
    ):
        yield f"{where}: {value!r} is no {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, (int, float)) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        yield f"{where}: {value} is out of range"
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{where}[{number}]")
    if not isinstance(value, dict):
        return
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}: {name} is missing"
    properties, more = schema.get("properties", {}), schema.get("additionalProperties")
    for name, item in value.items():
        if name in properties:
            yield from faults(item, properties[name], f"{where}.{name}")
        elif isinstance(more, dict):
            yield from faults(item, more, f"{where}.{name}")
        elif not (
            more is True or schema.get("x-kubernetes-preserve-unknown-fields") or is_free(schema)
        ):
            yield f"{where}: unknown field {name!r}"


def is_free(schema: dict[str, Any]) -> bool:
    """An object without any description, such as ``metadata``."""
    return "properties" not in schema and "additionalProperties" not in schema


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each kind, in the version that our manifests name."""
    found = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for kind in ("rayclusters", "rayjobs"):
        definition = yaml.load((CRDS / f"ray.io_{kind}.yaml").read_text(), loader)["spec"]
        (version,) = (one for one in definition["versions"] if one["name"] == "v1")
        found[definition["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
    return found


def test_the_manifests_are_there() -> None:
    assert [path.name for path in KUBERAY] == [
        "cluster.yaml",
        "train-stage1-1gpu.yaml",
        "train-stage1-8x8gpu.yaml",
        "train-stage2-1gpu.yaml",
        "train-stage2-8x8gpu.yaml",
    ]


needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="shared/data/kuberay_crds is not here")


@needs_crds
@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_manifests_fit_the_schemas(path: Path, schemas: dict[str, dict[str, Any]]) -> None:
    manifest = load(path)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert list(faults(manifest, schemas[manifest["kind"]])) == []


@needs_crds
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda spec: spec.update(entryPoint="fo1 list"), ".spec: unknown field 'entryPoint'"),
        (lambda spec: spec.update(backoffLimit="0"), ".spec.backoffLimit: '0' is no integer"),
        (lambda spec: spec.update(shutdownAfterJobFinishes=1), "is no boolean"),
        (
            lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="none"),
            "'none' is none of",
        ),
        (
            lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("minReplicas"),
            "minReplicas is missing",
        ),
        (
            lambda spec: container_of(spec).update(imagePullpolicy="Always"),
            "unknown field 'imagePullpolicy'",
        ),
        (
            lambda spec: container_of(spec)["resources"]["limits"].update(memory="lots"),
            "does not match",
        ),
        (lambda spec: container_of(spec)["env"][0].pop("name"), ".env[0]: name is missing"),
    ],
)
def test_the_check_is_strict(change, fault: str, schemas: dict[str, dict[str, Any]]) -> None:
    manifest = load(JOBS[0])
    change(manifest["spec"])
    (found,) = faults(manifest, schemas["RayJob"])
    assert fault in found


def container_of(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def cluster_spec(path: Path) -> dict[str, Any]:
    spec = load(path)["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_pods_have_what_they_need(path: Path) -> None:
    spec = cluster_spec(path)
    assert str(spec["rayVersion"]) == RAY_VERSION
    assert spec["authOptions"] == {"mode": "token"}
    for pod in pods(spec):
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["image"] == f"REGISTRY/fo1:{VERSION}"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"fo1": "/mnt/fo1", "shm": "/dev/shm"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_parses_and_fits_its_cluster(path: Path) -> None:
    """The words parse; every worker finds a GPU and a CPU, and one CPU is left."""
    manifest = load(path)
    words = shlex.split(manifest["spec"]["entrypoint"])
    assert words[0] == "fo1"
    assert words[-2:] == ["--address", "auto"]
    check_words(words[1:-2])
    _, stage, scale = path.stem.split("-")
    assert words[1:3] == ["train", stage]
    assert manifest["metadata"]["name"] == f"fo1-{path.stem}"

    (group,) = cluster_spec(path)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = group["replicas"] * int(limits["nvidia.com/gpu"])
    workers = int(words[words.index("--workers") + 1])
    assert gpus == workers == {"1gpu": 1, "8x8gpu": 64}[scale]
    assert group["replicas"] * int(limits["cpu"]) > workers
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    batch = next(word.partition("=")[2] for word in words if word.startswith("batch_size="))
    assert int(batch) % workers == 0


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_is_sent_once(path: Path) -> None:
    spec = load(path)["spec"]
    assert spec["backoffLimit"] == spec["submitterConfig"]["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]


def test_the_machines_fit_rays_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = load(VM)
    assert list(Draft7Validator(schema).iter_errors(config)) == []
    for broken in (
        config | {"idle_timeout": 5},
        {**config, "docker": config["docker"] | {"imag": "x"}},
    ):
        assert list(Draft7Validator(schema).iter_errors(broken))


def test_the_machines_are_of_two_groups() -> None:
    config = load(VM)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    workers = {name: spec for name, spec in types.items() if name != config["head_node_type"]}
    assert set(workers) == {"cpu", "gpu"}
    assert sum(spec["max_workers"] for spec in workers.values()) == config["max_workers"]
    assert config["docker"]["image"] == f"REGISTRY/fo1:{VERSION}"
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


@pytest.mark.parametrize("path", [*KUBERAY, VM], ids=lambda path: path.stem)
def test_commands_in_comments_parse(path: Path) -> None:
    """What a reader copies: ``fo1 submit ... -- WORDS``."""
    lines = re.findall(r"fo1 submit --address \S+ -- (.+)$", path.read_text(), re.MULTILINE)
    assert lines or path in JOBS
    for line in lines:
        check_words(shlex.split(line))


def instructions() -> list[tuple[str, str]]:
    text = (INFRA / "Dockerfile").read_text()
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def test_the_image_is_made_of_what_is_here() -> None:
    copied = []
    for name, rest in instructions():
        assert name != "ADD"
        if name == "COPY" and not rest.startswith("--from="):
            copied += rest.split()[:-1]
        if name == "FROM":
            assert re.match(r"python:3\.1[1-9]-slim\S+", rest), "a version, never `latest`"
    assert all((ROOT / source).exists() for source in copied)
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]["find"]
    assert {pattern.rstrip("*") for pattern in packaged["include"]} <= set(copied)


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    steps = instructions()
    (install,) = (
        rest
        for name, rest in steps
        if name == "RUN" and "pip install" in rest and "[cluster]" in rest
    )
    assert "--constraint infra/constraints.txt" in install
    last = [name for name, _ in steps].index("USER")
    assert steps[last][1] == "fo1"
    assert not any(name == "RUN" for name, _ in steps[last:])
    label = next(rest for name, rest in steps if name == "LABEL")
    assert f'version="{VERSION}"' in label


@pytest.mark.parametrize("path", [*KUBERAY, VM, INFRA / "Dockerfile"], ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    for line in path.read_text().splitlines():
        if line.lstrip().startswith("#"):
            continue
        assert not re.search(r"PASSWORD|AUTH_TOKEN|SECRET_KEY|ACCESS_KEY|://\S+:\S+@", line), line
