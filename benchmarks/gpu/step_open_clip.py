"""How long does the same step take with open_clip?

Its model and its ClipLoss, torch.compile (`compile`: the whole model, or each block, which compiles in a fraction of
the time), autocast to bfloat16, fused AdamW on float32 weights.
"""

import time
from typing import Any

from _part import Facts, Measure, Options, step_times, take_part
from _sizes_gpu import sized


def prepare(options: Options) -> tuple[Facts, Measure]:
    """Compile by taking a step, and give the memory of it back."""
    import torch
    from _peers import open_clip_model

    found = sized(options)
    model = open_clip_model(found.run.model)
    from open_clip.loss import ClipLoss  # importable once the model's stand-ins are

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model.to(device).train()
    optim, vision = found.stage.optim, found.run.model.vision
    loss_of = ClipLoss()
    named = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named if p.ndim >= 2], "weight_decay": optim.weight_decay},
            {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-5,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
        fused=True,
    )
    forward: Any = model
    if device == "cuda":
        if options.get("compile", "whole") == "whole":
            forward = torch.compile(model)
        else:
            for tower in (model.visual.transformer, model.transformer):
                for block in tower.resblocks:
                    block.compile()
    host = found.pairs()
    pixels = torch.from_numpy(host["pixels"]).to(device)
    tokens = torch.from_numpy(host["tokens"]).long().to(device)
    mean, std = (
        torch.tensor(value, device=device)[:, None, None] * 255 for value in (vision.pixel_mean, vision.pixel_std)
    )

    def step() -> Any:
        image = pixels.permute(0, 3, 1, 2).float()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            image_embed, text_embed, scale = forward((image - mean) / std, tokens)[:3]
            loss = loss_of(image_embed, text_embed, scale)
        loss.backward()
        optimizer.step()
        return loss.detach()

    began = time.perf_counter()
    first = float(step())
    compile_s = time.perf_counter() - began
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.empty_cache()

    def measure() -> Facts:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wait = (lambda _: torch.cuda.synchronize()) if device == "cuda" else lambda _: None
        losses = []

        def once() -> None:
            losses.append(step())

        times = step_times(once, wait)
        ends = {"first_loss": round(first, 4), "last_loss": round(float(losses[-1]), 4)}
        if device == "cuda":
            ends["device_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return times | ends

    return {"pairs": found.batch, "compile_s": round(compile_s, 1)}, measure


if __name__ == "__main__":
    take_part(prepare)
