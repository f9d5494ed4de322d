"""UPN, ChatRex's universal proposal network, from its published state dict, without compiling.

It runs on any device. Facts come from the released code: IDEA-Research/ChatRex `chatrex/upn/`, the
same in om-ai-lab/VLM-FO1 `detect_tools/upn/`. Files named in docstrings lie there.

- `detector`: UPN as a detector.
- `network`: the module and its sizes.
- `weights`: the published names of its weights.
"""
