"""Several engines and the MPS daemon inside one pod: the program that is PID 1 there, `gpupack host`.

Where no DRA driver shares a GPU, one pod holds the whole GPU (`nvidia.com/gpu: 1`). This supervisor, which an init
container brings into the user's vLLM image as one file (`archive`), runs the MPS daemon and the engines of its orders.

- `orders`: what the operator asks for: engines, each a port, arguments and marks that the supervisor only keeps.
- `life`: (state, event, time) -> (state, actions). Pure; every rule is there: one start at a time, clients before MPS,
  back-off, draining, what happens without MPS.
- `processes`: starts, ends and reaps; the last lines of what programs write.
- `mps`: the daemon's control shell.
- `server`: orders come in and reports go out over HTTP, for whoever has the token.
- `run`: the shell that feeds events in and carries actions out.

The operator knows which replica an engine is, whether it is in service, and why; the supervisor knows none of that. An
order is kept in a file with its generation, so a supervisor or an operator that starts again goes on where it was.
Only the standard library and this package are imported: vLLM images have nothing else that can be relied on.
"""
