"""The shipped model's shape, as config.json's fields."""

CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": 2048, "hidden_size": 256,
    "moe_intermediate_size": 128, "num_hidden_layers": 8, "num_hash_layers": 1, "num_nextn_predict_layers": 1,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128, "qk_rope_head_dim": 64, "q_lora_rank": 128,
    "o_lora_rank": 128, "o_groups": 2, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
    "scoring_func": "sqrtsoftplus", "norm_topk_prob": True, "routed_scaling_factor": 1.5, "swiglu_limit": 10.0,
    "sliding_window": 128, "compress_ratios": [0, 4, 128, 4, 128, 4, 128, 4, 0], "compress_rope_theta": 160000.0,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1},
    "index_n_heads": 4, "index_head_dim": 128, "index_topk": 96, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-06,
    "rms_norm_eps": 1e-06, "max_position_embeddings": 1048576, "bos_token_id": 0, "eos_token_id": 1, "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
                            "scale_fmt": "ue8m0"},
    "torch_dtype": "bfloat16",
}


class Shape:
    def __init__(self, config=CONFIG):
        g = config.__getitem__
        self.config = config
        self.vocab, self.d, self.layers, self.streams = g("vocab_size"), g("hidden_size"), g("num_hidden_layers"), g("hc_mult")
        self.heads, self.c, self.r, self.q_rank = g("num_attention_heads"), g("head_dim"), g("qk_rope_head_dim"), g("q_lora_rank")
        self.groups, self.o_rank = g("o_groups"), g("o_lora_rank")
        self.experts, self.chosen, self.inner = g("n_routed_experts"), g("num_experts_per_tok"), g("moe_intermediate_size")
        self.hash_layers, self.window, self.limit = g("num_hash_layers"), g("sliding_window"), g("swiglu_limit")
        self.routed_scale, self.ratios, self.sinkhorn = g("routed_scaling_factor"), g("compress_ratios"), g("hc_sinkhorn_iters")
        self.index_heads, self.index_dim, self.top_k = g("index_n_heads"), g("index_head_dim"), g("index_topk")
        self.hc_eps, self.eps = g("hc_eps"), g("rms_norm_eps")
        self.theta, self.compress_theta, self.yarn = g("rope_theta"), g("compress_rope_theta"), g("rope_scaling")
