"""Runs the pods that the scheduler binds to one node: a kubelet's part, without containers.

Level-triggered: at every change the pods that the API has are compared with those that run, so a missed deletion, an
expired watch or an API server that was away is made good by the next look. It does not know what programs do, and does
not register the node (`virtual_node`).
"""

from __future__ import annotations

import asyncio

from gpupack.kube.mirror import Mirror
from gpupack.node.pod_life import Host, PodLife
from gpupack.node.pods import Pod, pod_of


class Kubelet:
    """`run` never returns; cancelling it kills every program and leaves the objects as they are."""

    def __init__(self, host: Host, node: str) -> None:
        self._host = host
        self._stirred = asyncio.Event()
        self._lives: dict[str, tuple[PodLife, asyncio.Task[None]]] = {}
        self._pods: Mirror[Pod] = Mirror(
            host.api, "/api/v1/pods", pod_of, self._stirred.set, name=f"pods of {node}",
            field_selector=f"spec.nodeName={node}",
        )  # fmt: skip

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run())
            await self._pods.synced.wait()
            while True:
                self._stirred.clear()
                self._compare(group)
                await self._stirred.wait()

    def _compare(self, group: asyncio.TaskGroup) -> None:
        seen = {pod.uid: pod for pod in self._pods.all()}
        for uid, (_, task) in list(self._lives.items()):
            if uid not in seen:
                task.cancel()
                del self._lives[uid]
        for uid, pod in seen.items():
            if uid in self._lives:
                self._lives[uid][0].update(pod)
            elif not pod.ended or pod.grace_seconds is not None:
                life = PodLife(pod, self._host)
                self._lives[uid] = (life, group.create_task(life.run()))
