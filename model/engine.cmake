# Configuration, checkpoint and the CPU engine.
find_package(hwy REQUIRED)

agentd_library(agentd_model
  SOURCES anchor.cc config.cc checkpoint.cc engine.cc engine_base.cc kv_format.cc math.cc sequence_base.cc state_layout.cc weight_plan.cc
          cpu/ceiling.cc cpu/engine.cc cpu/forward.cc cpu/forward_attention.cc cpu/forward_moe.cc cpu/forward_mtp.cc
          cpu/kernels_attention.cc cpu/kernels_elementwise.cc cpu/kernels_index.cc cpu/kernels_linear.cc
          cpu/memory.cc cpu/packed_matrix.cc cpu/sequence.cc cpu/thread_pool.cc
          cpu/top_k.cc cpu/weights.cc
  PUBLIC agentd_base agentd_json hwy::hwy nlohmann_json::nlohmann_json Threads::Threads)
# The kernels' loops over registers must unroll.
set_source_files_properties(cpu/kernels_attention.cc cpu/kernels_elementwise.cc cpu/kernels_index.cc cpu/kernels_linear.cc
  PROPERTIES COMPILE_OPTIONS $<$<NOT:$<CONFIG:Debug>>:-O3>)

# The engine's operations in scalar code, for tests.
agentd_library(agentd_reference SOURCES reference/reference.cc reference/formulas.cc PUBLIC agentd_model)

# The tensors of a published model without their data, for benchmarks.
agentd_library(agentd_synthetic SOURCES synthetic_checkpoint.cc PUBLIC agentd_model agentd_text)

agentd_test(engine_golden_test SOURCES cpu/golden_test.cc DEPS agentd_model)
agentd_test(engine_test SOURCES cpu/engine_test.cc DEPS agentd_model TIMEOUT 600)
agentd_test(property_test SOURCES cpu/property_test.cc DEPS agentd_model TIMEOUT 600)
agentd_test(kernels_test SOURCES cpu/kernels_test.cc DEPS agentd_model agentd_reference)
agentd_test(numeric_test SOURCES numeric_test.cc DEPS agentd_model)
agentd_test(formulas_test SOURCES cpu/formulas_test.cc DEPS agentd_model agentd_reference)
agentd_test(thread_pool_test SOURCES cpu/thread_pool_test.cc DEPS agentd_model)
agentd_test(engine_base_test SOURCES engine_base_test.cc DEPS agentd_model)
agentd_test(checkpoint_test SOURCES checkpoint_test.cc DEPS agentd_model)
agentd_test(synthetic_checkpoint_test SOURCES synthetic_checkpoint_test.cc DEPS agentd_synthetic)

agentd_fuzzer(fuzz_config SOURCES fuzz/fuzz_config.cc DEPS agentd_model agentd_text)
agentd_fuzzer(fuzz_safetensors SOURCES fuzz/fuzz_safetensors.cc DEPS agentd_model)
agentd_fuzzer(fuzz_import SOURCES fuzz/fuzz_import.cc DEPS agentd_model)
if(AGENTD_FUZZ)
  target_compile_definitions(fuzz_import PRIVATE MODEL_DIR="${PROJECT_SOURCE_DIR}/tests/golden/official-a")
endif()
