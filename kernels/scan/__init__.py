"""The selective scan: its public functions, its order, and one module or family for each backend.

`operation` is what users call; `checks` refuses what does not fit, and `dispatch` hands the rest to
a backend: `reference` is the twin that says it as the equations do, `blocked` and `blocked_full`
run on a CPU in PyTorch, `native` in C++, `triton` on a GPU, and `mamba_ssm` by the extension of
that package.
"""
