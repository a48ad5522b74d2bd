"""Experts whose router logits are equal: which one a token takes, and whether that happens in routers that are stored in bf16."""
import h5py
import numpy as np
import pytest
import torch
import transformers

import mdp


def dumped(model, tokens, out):
    """[(router logits, chosen experts)] of every layer and sequence."""
    mdp.succeed(2, "eval", "--model", model, "--tokens", tokens, "--dump", out / "dump.h5", "--out", out / "eval.json")
    found = []
    with h5py.File(out / "dump.h5") as dump:
        dump["original"].visititems(lambda name, item: found.append((item["router_logits"][...], item["topk_index"][...]))
                                    if isinstance(item, h5py.Group) and "router_logits" in item else None)
    return found


def test_of_equal_logits_the_lower_expert_is_taken(tmp_path):
    """Router rows that are the same give every token a tie; torch.topk may take either."""
    from safetensors.torch import load_file, save_file
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = load_file(mdp.GOLDEN / "mixtral" / "model.safetensors")
    for name, router in tensors.items():
        if name.endswith("block_sparse_moe.gate.weight"):
            router[5] = router[2]
            router[7] = router[0]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((mdp.GOLDEN / "mixtral" / "config.json").read_bytes())
    n_tie = 0
    for logits, chosen in dumped(folder, mdp.golden_tokens("mixtral", tmp_path / "tokens.h5"), tmp_path):
        assert np.array_equal(logits[:, 5], logits[:, 2]) and np.array_equal(logits[:, 7], logits[:, 0])
        want = np.argsort(-logits, axis=1, kind="stable")[:, :chosen.shape[1]]
        assert np.array_equal(np.sort(chosen), np.sort(want))
        ordered = -np.sort(-logits, axis=1)
        n_tie += int((ordered[:, chosen.shape[1] - 1] == ordered[:, chosen.shape[1]]).sum())
    assert n_tie > 20  # ties between the last that is taken and the first that is not


@pytest.mark.parametrize("name", ["mixtral-demo", "mixtral-demo-math", "golden/mixtral_bf16", "golden/qwen3_moe_bf16"])
def test_routers_stored_in_bf16_tie_for_no_token_in_float32(name, tmp_path):
    """No two rows are equal, no token finds its last expert equal to the next, and every token takes the experts that torch.topk takes."""
    folder, tokens = mdp.FIXTURES / name, tmp_path / "tokens.h5"
    if "golden" in name:
        mdp.golden_tokens(name.split("/")[1], tokens)
    else:
        with h5py.File(mdp.CALIB) as text:  # as many as a dump may have
            mdp.write_tokens(tokens, {c: [text[c]["input_ids"][: 128].astype(int)] for c in text})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    routers = [module for path, module in model.named_modules() if path.endswith((".mlp.gate", ".block_sparse_moe.gate"))]
    k, seen, n_decision = model.config.num_experts_per_tok, {}, 0
    assert all(len(torch.unique(router.weight, dim=0)) == len(router.weight) for router in routers)
    for i, router in enumerate(routers):
        router.register_forward_pre_hook(lambda module, inputs, i=i: seen.update({i: inputs[0].flatten(0, -2)}))
    ours = dumped(folder, tokens, tmp_path)
    with h5py.File(tokens) as text, torch.no_grad():
        rows = [ids for c in text for ids in np.split(text[c]["input_ids"][...].astype(int), text[c]["offsets"][1:-1])]
        theirs = []
        for ids in rows:
            model(input_ids=torch.from_numpy(ids[None]), use_cache=False)
            theirs += [torch.nn.functional.linear(seen[i], router.weight) for i, router in enumerate(routers)]
    assert len(ours) == len(theirs) == len(rows) * len(routers)
    for (_, chosen), logits in zip(ours, theirs):
        ordered = logits.sort(dim=-1, descending=True).values
        assert not (ordered[:, k - 1] == ordered[:, k]).any()
        assert np.array_equal(np.sort(chosen), np.sort(torch.topk(logits, k).indices.numpy()))
        n_decision += len(chosen)
    print(n_decision, "decisions without a tie")
    assert n_decision == sum(map(len, rows)) * len(routers)
