"""The closed-form performance model: memory of a replica, time of a step, engines that share a GPU."""
