"""The cache with room gives what the one that copies gives."""

import torch
from support import tiny

from personavec.model.chat_model import ChatModel
from personavec.model.kv_cache import RoomyLayer, empty, make_room, using


def test_room_changes_nothing(any_model: ChatModel) -> None:
    ids, mask = any_model.tensor([tiny.prompt(9), tiny.prompt(14), tiny.prompt(5)], left=True)
    outs = []
    for room in (None, 12, 3):  # the last one has to grow on the way
        cache = empty(any_model)
        own, logits = mask, []
        positions = (own.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            any_model.decoder(input_ids=ids, attention_mask=own, position_ids=positions, **using(any_model, cache))
            if room is not None:
                make_room(cache, room)
            tokens, last = torch.tensor([[40], [50], [60]]), positions[:, -1:] + 1
            for step in range(10):
                if step == 4:
                    kept = torch.tensor([2, 0])
                    cache.reorder_cache(kept)
                    own, tokens, last = own[kept], tokens[kept], last[kept]
                own = torch.cat([own, own.new_ones((len(own), 1))], dim=1)
                out = any_model.hf(input_ids=tokens, attention_mask=own, position_ids=last, **using(any_model, cache))
                logits.append(out.logits)
                tokens, last = out.logits[:, -1].argmax(-1, keepdim=True), last + 1
        outs.append(logits)
        if room is not None and "gemma3" not in any_model.identity.id and "mistral" not in any_model.identity.id:
            assert all(isinstance(layer, RoomyLayer) for layer in cache.layers)
    for logits in outs[1:]:
        for mine, theirs in zip(logits, outs[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
