"""Measures in the cluster what a ModelProfile with `spec.measure` asks for: an engine in a Job, clients beside it.

Level-triggered: every look compares what the profile's status holds with what stands in the cluster and takes the next
small step, so an operator that ends anywhere goes on from the points that were written. The clients are `gpupack
profile` in a process of its own, which talks to the engine's HTTP API as any user does. Knows nothing of pools' plans
but which GPUs are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gpupack.errors import Invalid, Unavailable
from gpupack.facts.engine_args import PORT, engine_args
from gpupack.facts.gpu import GpuKind
from gpupack.facts.measured import Results
from gpupack.facts.serving import BLOCK_TOKENS, Lengths, Profile, ProfilePoint, Serving, Shape
from gpupack.kube import child_resource, labels, manifests, measure_resource, node_resource
from gpupack.kube.api import Api, Conflict, Json, NotFound
from gpupack.kube.measure_resource import Measurement, Phase, Progress
from gpupack.kube.mirror import Mirror
from gpupack.kube.observe import PROFILES, Mirrors
from gpupack.kube.serving_resource import EngineTemplate
from gpupack.perf import calibration, memory
from gpupack.profiling import sweep
from gpupack.profiling.client import BUSY_CLIENT, SPREAD, even_lengths
from gpupack.profiling.fitting import fitted
from gpupack.profiling.points import point_of
from gpupack.profiling.sweep import Run
from gpupack.units import Bytes, Ratio, percent

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
UNPLACED_SECONDS = 60.0
"""An engine that found no GPU for so long gives its claim back and asks for those that are free by then."""
LONGEST_RUN_SECONDS = 3600.0
BATCHED_TOKENS = 2048
"""Token budget of a step: what the fit takes measured engines to have."""
MARGIN = 1.1
"""Prompts are made of words, whose tokens are counted on average."""
MOST_HUNDREDTHS = 92
"""Of the GPU's memory: vLLM's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is measured, found from the profile's names."""

    template: EngineTemplate
    serving: Serving
    gpu: GpuKind
    lengths: Lengths
    limits: tuple[int, ...]


@dataclass(slots=True)
class _Client:
    """The clients of one run, as a task that ends with a point or with what went wrong."""

    run: Run
    task: asyncio.Task[ProfilePoint | str]


class Measurer:
    """`run` never returns; cancel it, and its clients end. `gpu_by_name` raises Invalid for an unknown one."""

    def __init__(
        self, api: Api, mirrors: Mirrors, gpu_by_name: Callable[[str], GpuKind], *, pod_proxy: str | None
    ) -> None:
        self._api = api
        self._mirrors = mirrors
        self._gpu_by_name = gpu_by_name
        self._pod_proxy = pod_proxy
        self._stirred = asyncio.Event()
        self._profiles: Mirror[Measurement] = Mirror(
            api, PROFILES, measure_resource.measurement_of, self._stirred.set, name="measurements"
        )
        self._clients: dict[str, _Client] = {}
        self._written: dict[str, str] = {}
        self._unplaced: dict[str, float] = {}

    async def run(self) -> None:
        following = asyncio.create_task(self._profiles.run())
        try:
            await self._mirrors.synced()
            await self._profiles.synced.wait()
            while True:
                self._stirred.clear()
                busy = False
                for each in self._profiles.all():
                    busy |= await self._look_or_say_why_not(each)
                await self._forget()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS if busy else None):
                        await self._stirred.wait()
        finally:
            following.cancel()
            clients = [each.task for each in self._clients.values()]
            for task in clients:
                task.cancel()
            await asyncio.gather(following, *clients, return_exceptions=True)

    async def _forget(self) -> None:
        """The clients of profiles that are gone; what was theirs in the cluster goes with its owner."""
        there = {each.uid for each in self._profiles.all() if not each.deleting}
        for uid in [uid for uid in self._clients if uid not in there]:
            await self._end_client(uid)

    async def _look_or_say_why_not(self, measurement: Measurement) -> bool:
        """Whether to look again soon."""
        if measurement.deleting:
            return False
        try:
            return await self._look(measurement)
        except (Conflict, NotFound):
            self._profiles.doubt()  # somebody wrote it since it was seen
        except Unavailable as problem:
            log.warning("%s/%s is not measured for now: %s", measurement.namespace, measurement.name, problem)
        return True

    async def _look(self, measurement: Measurement) -> bool:
        if measurement.resource_version == self._written.get(measurement.uid):
            return True  # what was written last is still to be seen
        if measure_resource.is_over(measurement):
            return await self._tidy(measurement)
        try:
            subject = self._subject(measurement)
        except Invalid as wrong:
            before = measure_resource.progress_of(measurement, measurement.status.get("template", ""))
            await self._tidy(measurement)
            await self._write(measurement, replace(before, phase=Phase.WAITING, message=str(wrong)))
            return True  # the serving may come
        before = measure_resource.progress_of(measurement, subject.template.hash)
        client = self._clients.get(measurement.uid)
        if client is not None and client.task.done():
            del self._clients[measurement.uid]
            results = sweep.added(before.results, client.run, client.task.result())
            await self._write(measurement, _with(before, subject, results))
            return True
        course = sweep.course(subject.limits, before.results)
        if course.next is None:
            await self._write(measurement, await asyncio.to_thread(_finished, before, measurement, subject))
            return True
        if measurement.suspended:
            there = await self._tidy(measurement)
            told = "spec.measure.suspend is set; what was measured stays"
            await self._write(measurement, replace(_with(before, subject), phase=Phase.SUSPENDED, message=told))
            return there
        if client is not None and client.run != course.next:
            await self._end_client(measurement.uid)
        progress = await self._advance(measurement, subject, _with(before, subject), course.next)
        await self._write(measurement, progress)
        return True

    async def _advance(self, measurement: Measurement, subject: _Subject, before: Progress, run: Run) -> Progress:
        """One step towards the next run: room, claim and Job, then clients once the engine is ready."""
        template, limit = subject.template, run.engine_limit
        starting = replace(before, phase=Phase.STARTING, message=f"an engine of batch limit {limit} starts")
        jobs, pods = await self._jobs(measurement), await self._pods(measurement)
        name = measure_resource.job_name(measurement, template, limit, confirms=run.confirms)
        others = [job for job in jobs if job["metadata"]["name"] != name]
        leaving = [job for job in jobs if "deletionTimestamp" in job["metadata"]]
        if others or leaving or (pods and not jobs):
            await self._end_client(measurement.uid)
            await self._delete_jobs(measurement, others)
            return starting  # the engine before still holds the GPU
        if not jobs:
            if (problem := await self._start(measurement, subject, name, limit)) is not None:
                return replace(before, phase=Phase.WAITING, message=problem)
            return starting
        said = next((words for pod in pods if (words := child_resource.message_of(pod))), "")
        if measure_resource.failed(jobs[0]):
            await self._end_client(measurement.uid)
            await self._delete_jobs(measurement, jobs)
            problem = f"the engine ended: {said or 'its pod was lost'}"
            return _with(starting, subject, sweep.added(before.results, run, problem))
        ready = next((pod for pod in pods if child_resource.is_ready(pod)), None)
        if ready is None:
            await self._give_back_if_unplaced(measurement, jobs, pods)
            return replace(starting, message=f"{starting.message} ({said})") if said else starting
        if measurement.uid not in self._clients:
            url = f"http://{ready['status']['podIP']}:{PORT}"
            task = asyncio.create_task(self._clients_run(url, measurement, run.clients))
            task.add_done_callback(lambda _: self._stirred.set())
            self._clients[measurement.uid] = _Client(run, task)
        phase = Phase.CONFIRMING if run.confirms else Phase.MEASURING
        return replace(before, phase=phase, message=f"{run.clients} clients at a time")

    # What is asked for

    def _subject(self, measurement: Measurement) -> _Subject:
        """Raises Invalid where the profile does not go with its serving, or no such engine fits the GPU."""
        gpu = self._gpu_by_name(measurement.gpu_kind)
        field = "spec.measure.servingRef.name"
        resource = self._mirrors.servings.get(measurement.serving.namespace, measurement.serving.name)
        if resource is None:
            raise Invalid(field, f"there is no ModelServing {measurement.serving.name!r}", "create it, or name another")
        serving = resource.serving
        if not isinstance(serving, Serving):
            raise Invalid(field, f"{measurement.serving.name} is not accepted", "see its own conditions")
        names = (serving.llm.name, *serving.llm.aliases)
        if measurement.model.lower() not in (each.lower() for each in names):
            raise Invalid("spec.model", f"{measurement.serving.name} serves {serving.llm.name}", "write that")
        if measurement.engine_version != resource.template.version:
            problem = f"{measurement.serving.name} runs vLLM {resource.template.version}"
            raise Invalid("spec.engineVersion", problem, "write that, or change its image")
        if not gpu.computes_in(serving.dtype):
            raise Invalid("spec.gpu", f"{gpu.name} does not compute in {serving.dtype.value}", "change the dtype")
        found = _Subject(
            template=resource.template,
            serving=serving,
            gpu=gpu,
            lengths=even_lengths(measurement.input_tokens, measurement.output_tokens),
            limits=measurement.limits or sweep.ladder(measurement.largest),
        )  # fmt: skip
        _shape(found, max(found.limits))  # says at once if it has no room
        return found

    async def _start(self, measurement: Measurement, subject: _Subject, name: str, limit: int) -> str | None:
        """Claim and Job. What is missing, if they cannot be."""
        if not await self._listed(measurement, CLAIMS):
            uuids = self._free_gpus(measurement)
            if not uuids:
                return f"no {measurement.gpu_kind} is free of gpupack's replicas and of others"
            claim = measure_resource.claim(measurement, uuids)
            await self._api.apply(f"{_path(measurement, CLAIMS)}/{claim['metadata']['name']}", claim)
        job = measure_resource.job(measurement, name, _arguments(subject, limit), subject.template)
        await self._api.apply(f"{_path(measurement, JOBS)}/{name}", job)
        return None

    def _free_gpus(self, measurement: Measurement) -> list[str]:
        """GPUs of the kind on which no pool has a replica and nobody else is, on nodes that take pods."""
        mirrors = self._mirrors
        devices = mirrors.devices()
        planned = {
            placement.gpu_uuid
            for pool in mirrors.pools.all()
            if pool.plan is not None
            for placement in pool.plan.placements
        }
        claims = [each.foreign for each in mirrors.claims.all() if each.foreign is not None]
        pods = [each.foreign for each in mirrors.pods.all() if each.foreign is not None]
        held = {each.gpu_uuid for each in node_resource.holders_of(devices, claims, pods)}
        nodes = {each.name for each in mirrors.nodes.all() if each.ready and not each.cordoned}
        return sorted(
            each.gpu.uuid
            for each in devices
            if each.gpu.kind.name == measurement.gpu_kind and each.gpu.node in nodes
            and each.gpu.uuid not in planned | held
        )  # fmt: skip

    async def _give_back_if_unplaced(
        self, measurement: Measurement, jobs: Sequence[Json], pods: Sequence[Json]
    ) -> None:
        """GPUs that were free when the claim was written may be taken by now."""
        now = asyncio.get_running_loop().time()
        if any("nodeName" in pod["spec"] for pod in pods):
            self._unplaced.pop(measurement.uid, None)
        elif now - self._unplaced.setdefault(measurement.uid, now) > UNPLACED_SECONDS:
            del self._unplaced[measurement.uid]
            await self._delete_jobs(measurement, jobs)
            await self._delete_claim(measurement)

    # The clients

    async def _clients_run(self, url: str, measurement: Measurement, clients: int) -> ProfilePoint | str:
        """`gpupack profile` for one number of clients; its point, or why there is none."""
        words = [
            "profile", "--base-url", url, "--batches", str(clients), "--json",
            "--input-tokens", str(measurement.input_tokens), "--output-tokens", str(measurement.output_tokens),
            "--seconds", str(measurement.seconds),
            *(() if self._pod_proxy is None else ("--proxy", self._pod_proxy)),
        ]  # fmt: skip
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gpupack", *words, stdout=pipe, stderr=pipe
        )
        try:
            async with asyncio.timeout(LONGEST_RUN_SECONDS):
                said, complaint = await process.communicate()
        except TimeoutError:
            return f"no result within {LONGEST_RUN_SECONDS:.0f} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            row = json.loads(said)["points"][0]
            if row["client_busy"] > BUSY_CLIENT:
                busy = percent(row["client_busy"])
                return f"the clients computed for {busy:.0f} % of the time: they may have been what was slow"
            return point_of(row)
        except (ValueError, KeyError, IndexError, TypeError):
            return (
                complaint.decode(errors="replace").strip()[-measure_resource.MESSAGE_LIMIT :] or "the clients crashed"
            )

    async def _end_client(self, uid: str) -> None:
        if (client := self._clients.pop(uid, None)) is not None:
            client.task.cancel()
            await asyncio.gather(client.task, return_exceptions=True)

    # The cluster

    async def _listed(self, measurement: Measurement, collection: str) -> list[Json]:
        """The children of one kind."""
        selector = measure_resource.selector(measurement)
        found = await self._api.get(_path(measurement, collection), limit=100, labelSelector=selector)
        return list(found.get("items") or ())

    async def _jobs(self, measurement: Measurement) -> list[Json]:
        return await self._listed(measurement, JOBS)

    async def _pods(self, measurement: Measurement) -> list[Json]:
        return await self._listed(measurement, PODS)

    async def _delete_jobs(self, measurement: Measurement, jobs: Sequence[Json]) -> None:
        for job in jobs:
            metadata = job["metadata"]
            if "deletionTimestamp" not in metadata:
                path = f"{_path(measurement, JOBS)}/{metadata['name']}"
                await self._api.delete(path, uid=metadata["uid"], with_children=True)

    async def _delete_claim(self, measurement: Measurement) -> None:
        for claim in await self._listed(measurement, CLAIMS):
            metadata = claim["metadata"]
            if "deletionTimestamp" not in metadata:
                await self._api.delete(f"{_path(measurement, CLAIMS)}/{metadata['name']}", uid=metadata["uid"])

    async def _tidy(self, measurement: Measurement) -> bool:
        """Takes engine, clients and claim away. Whether anything was still there."""
        await self._end_client(measurement.uid)
        jobs, pods = await self._jobs(measurement), await self._pods(measurement)
        await self._delete_jobs(measurement, jobs)
        if not jobs and not pods:
            await self._delete_claim(measurement)
            return False
        return True

    async def _write(self, measurement: Measurement, progress: Progress) -> None:
        """Nothing that already stands there. Raises Conflict if somebody wrote the profile since it was seen."""
        status = measure_resource.status_to_dict(progress, measurement.generation)
        if status != measurement.status:
            path = f"{labels.API_PATH}/namespaces/{measurement.namespace}/modelprofiles/{measurement.name}"
            await self._api.apply(f"{path}/status", measure_resource.status_body(measurement, status))
            self._written[measurement.uid] = measurement.resource_version


CLAIMS = "/apis/resource.k8s.io/v1/namespaces/{}/resourceclaims"
JOBS = "/apis/batch/v1/namespaces/{}/jobs"
PODS = "/api/v1/namespaces/{}/pods"


def _path(measurement: Measurement, collection: str) -> str:
    return collection.format(measurement.namespace)


def _with(progress: Progress, subject: _Subject, results: Results | None = None) -> Progress:
    """With these results, or its own, counted."""
    kept = progress.results if results is None else results
    course = sweep.course(subject.limits, kept)
    return replace(progress, results=kept, settled=course.settled, runs=course.runs, chosen=course.chosen)


def _finished(before: Progress, measurement: Measurement, subject: _Subject) -> Progress:
    """The end, with coefficients fitted to the points."""
    progress = _with(before, subject)
    results = progress.results
    if not results.points:
        problem = results.failures[-1].problem if results.failures else "nothing was measured"
        return replace(progress, phase=Phase.FAILED, message=f"not one point could be measured: {problem}")
    profile = Profile(
        name=measurement.name,
        model=measurement.model,
        gpu_kind=subject.gpu.name,
        engine_version=measurement.engine_version,
        lengths=subject.lengths,
        points=results.points,
    )
    llm, dtype = subject.serving.llm, subject.serving.dtype
    found = fitted(profile, llm, subject.gpu, calibration.coefficients(measurement.engine_version), dtype)
    return replace(progress, phase=Phase.DONE, message=_summary(results, progress.chosen, found.error), fitted=found)


def _summary(results: Results, chosen: int | None, error: Ratio) -> str:
    told = f"batch limit {chosen} chosen; the coefficients miss these points by at most {percent(error):.0f} %"
    swept = next(point for point in results.points if point.max_num_seqs == chosen)
    if results.confirmed is not None:
        off = results.confirmed.total_tokens_per_second / swept.total_tokens_per_second - 1.0
        return f"{told}; an engine of that limit brings {percent(off):+.1f} % of the throughput measured in the sweep"
    return f"{told}; not confirmed: {results.unconfirmed.problem}" if results.unconfirmed else told


def _arguments(subject: _Subject, limit: int) -> list[str]:
    """Everything after `vllm serve`, with KV cache for `limit` of the longest sequences that the clients ask for, or
    as much as the GPU has."""
    serving, template, gpu = subject.serving, subject.template, subject.gpu
    shape = _shape(subject, limit)
    total = memory.replica_memory(serving.llm, serving.dtype, shape, gpu).total
    utilization = min(MOST_HUNDREDTHS, memory.utilization_hundredths(total, gpu))
    owned = engine_args(
        shape, utilization, version=template.version, dtype=template.dtype, revision=template.revision,
        drain=manifests.DRAIN,
    )  # fmt: skip
    return [manifests.served_model(template, serving.llm), *owned, *template.args]


def _shape(subject: _Subject, limit: int) -> Shape:
    """Raises Invalid if not one sequence fits the GPU."""
    llm, dtype = subject.serving.llm, subject.serving.dtype
    mean = subject.lengths.input_mean + subject.lengths.output_mean
    longest = min(llm.max_model_len, math.ceil((1.0 + SPREAD) * MARGIN * mean / BLOCK_TOKENS) * BLOCK_TOKENS)
    whole = memory.default_shape(
        llm, dtype, subject.gpu, max_num_seqs=limit, max_num_batched_tokens=max(BATCHED_TOKENS, limit),
        max_model_len=longest,
    )  # fmt: skip
    if whole.kv_cache_memory_bytes < memory.kv_cache_bytes(llm, dtype, longest):
        raise Invalid("spec.gpu", f"{subject.gpu.name} has no room for {llm.name} and {longest} tokens", "a larger one")
    wanted = memory.kv_cache_bytes(llm, dtype, limit * longest)
    return replace(whole, kv_cache_memory_bytes=Bytes(min(whole.kv_cache_memory_bytes, wanted)))
