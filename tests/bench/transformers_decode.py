#!/usr/bin/env python3
"""The transformers library's DeepSeek-V4 on one GPU, beside `v4 bench --shape flash --layers N`: Flash's shape, its first N layers,
random weights in BF16, one sequence.

transformers_decode.py [--layers 4] [--context 1024] [--steps 20] prints medians:
transformers X.Y: N layers: decode M ms/token, prefill K tokens/s"""
import argparse
import inspect
import json
import pathlib
import statistics
import sys
import traceback

import torch
import transformers

SHAPE = pathlib.Path(__file__).resolve().parents[2] / "model/v4/shapes/flash.json"


def say(text):
    print(text, file=sys.stderr, flush=True)


def make_config(layers):
    fields = json.loads(SHAPE.read_text())
    for name in ("architectures", "quantization_config", "expert_dtype", "torch_dtype"):
        fields.pop(name, None)
    # The library turns these ratios into its `layer_types`, and num_hash_layers into `mlp_layer_types`.
    fields |= {"num_hidden_layers": layers, "num_nextn_predict_layers": 0, "compress_ratios": fields["compress_ratios"][:layers]}
    fields["rope_scaling"]["rope_type"] = fields["rope_scaling"]["type"]
    kind = fields.pop("model_type")
    try:
        config = transformers.AutoConfig.for_model(kind, **fields)
    except Exception as error:  # it is only what the positions are scaled by: no matter for speed
        say(f"without rope_scaling: {error!r}")
        fields.pop("rope_scaling")
        config = transformers.AutoConfig.for_model(kind, **fields)
    say(f"layer_types {getattr(config, 'layer_types', None)}, mlp_layer_types {getattr(config, 'mlp_layer_types', None)}")
    return config


def make_model(config):
    with torch.device("cuda"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        except (TypeError, ValueError) as error:
            say(f"AutoModelForCausalLM.from_config: {error!r}")
            model = transformers.DeepseekV4ForCausalLM(config).to(torch.bfloat16)
        # Made without a checkpoint the table of hashed experts is zeros: every token would read the same expert.
        for module in model.modules():
            if hasattr(module, "tid2eid"):
                drawn = torch.rand(config.vocab_size, config.n_routed_experts).topk(config.num_experts_per_tok).indices
                module.tid2eid.data.copy_(drawn)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters, experts by {getattr(config, '_experts_implementation', 'default')}, "
        f"attention by {getattr(config, '_attn_implementation', 'default')}, types {sorted({str(p.dtype) for p in model.parameters()})}")
    return model.eval()


def timed_ms(run):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end), result


@torch.inference_mode()
def measure(model, config, context, steps):
    """(median ms of a decode step, median ms of a prefill)"""
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def forward(ids, past=None):
        return model(input_ids=ids, past_key_values=past, use_cache=True, **keep)

    def draw(count):
        return torch.randint(config.vocab_size, (1, count), device="cuda")

    prefills = []
    for i in range(5):  # the first two warm up
        ids, output = draw(context), None  # the last one's cache goes first
        ms, output = timed_ms(lambda: forward(ids))
        prefills.append(ms)
    decodes, past = [], output.past_key_values
    for i in range(steps + 5):
        ids = draw(1)
        ms, output = timed_ms(lambda: forward(ids, past))
        past = output.past_key_values
        decodes.append(ms)
    if hasattr(past, "get_seq_length"):
        say(f"{past.get_seq_length()} tokens in the cache at the end")
    return statistics.median(decodes[5:]), statistics.median(prefills[2:])


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--layers", type=int, default=4)
    a.add_argument("--context", type=int, default=1024)
    a.add_argument("--steps", type=int, default=20)
    a = a.parse_args()
    say(f"torch {torch.__version__}, {torch.cuda.get_device_name(0)}")
    config = model = None
    try:
        config = make_config(a.layers)
        model = make_model(config)
        decode_ms, prefill_ms = measure(model, config, a.context, a.steps)
    except Exception:  # what is there, for whoever adapts this to another version
        traceback.print_exc()
        say(f"transformers {transformers.__version__} has {[name for name in dir(transformers) if 'eepseekV4' in name]}")
        say(f"config: {config}")
        say(f"model: {model}")
        return 1
    print(f"transformers {transformers.__version__}: {a.layers} layers: decode {decode_ms:.2f} ms/token, "
          f"prefill {a.context / prefill_ms * 1e3:.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
