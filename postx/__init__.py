"""postx: what comes after the Transformer, in files of one idea each. Its rooms, from the ground up:

    shapes       the letters of every axis, said once; the door that holds what comes in to its name
    scans        the recurrences that mixers share, in torch, numba and Triton, with gradients
    parts        what mixers are made of: caches, rotary positions, tiles, convolutions
    mixers       attention, state spaces, linear attention and its relatives, long convolutions, liquid networks
    models       LM("SSSA"), published models, kept weights, models in fewer bits
    quant        quantizers, from 8 bits down to 1.58
    diffusion    bounds and samplers over any denoiser
    distributed  a text over several devices: ring attention, the passed state; rows over them for train
    train        one loop with exact resume; tasks, text, packages and ngram beside it
    cost         FLOPs, bytes and state in closed form
    planner      what a model costs on a device, and which models do what is asked
    cli          generate, look, quantize, compare, plan on a command line; __main__ beside it
    explore      sliders, live and static; style, fieldmap and the game of slots beside it
    export       a kept model in few bits, as a file and a script that a page runs
    widgets      tools of the pages: the matrix a text makes, a memory one paints on, diagrams of the layers

`import postx` loads none of them.
"""

__version__ = "0.1.0"
