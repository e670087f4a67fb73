"""What a user asks for, one module or folder each: a request comes in, and what was found goes out as an artifact.

What has to be said on the way goes through a `Reporter`; what is printed is made of the results by the commands.  Where
a workflow takes a session with a Hub, None stands for the one that its request names.

    recipes                    from a request to the recipe that it stands for
    run, choosing              what all share: a run of a recipe, from the base to its scores; its plan
    chat                       the chat template of a base, and what asks through it
    reachable                  what a target may be reached by, and how long sublayers take on this device
    prune                      from the plan to a verified checkpoint
    adopt                      what others pruned, read without their code and written anew
    quantize, quantized        the same in fewer bits; such a checkpoint beside the one that it was made of
    heal, healed               what pruning lost, brought back by training; what such a checkpoint is made of
    score, sweep               which layers matter, and what every number of drops costs
    verify, compare, speed     a folder or repo against its base, or two of them side by side
    runtimes                   a checkpoint in vLLM, llama.cpp and mlx-lm
    publish, push, jobs        one commit, what a dry run left, the same on another machine
    card, refresh, reproduce   what was published, written again, brought up to date, run again
    export, demo               for llama.cpp; all of it on a local Hub
    doctor, estimate           what would stop a publish here, and what its stages need, by arithmetic
"""
