# The CUDA backend, part of agentd_model.
if(NOT AGENTD_HAS_CUDA)
  return()
endif()
if(AGENTD_CUDA STREQUAL "HEADERS")
  target_include_directories(agentd_model SYSTEM PUBLIC ${AGENTD_CUDA_INCLUDE})
else()
  file(GLOB AGENTD_CUDA_KERNELS CONFIGURE_DEPENDS cuda/*.cu)
  # As on the CPU no product and sum become one operation by the compiler's choice.
  set_source_files_properties(${AGENTD_CUDA_KERNELS} PROPERTIES COMPILE_OPTIONS
    "--expt-relaxed-constexpr;-fmad=false;-Xcompiler=-ffp-contract=off")
  target_link_libraries(agentd_model PUBLIC CUDA::cudart_static)
endif()
target_sources(agentd_model PRIVATE ${AGENTD_CUDA_KERNELS}
  cuda/ceiling.cc cuda/device.cc cuda/engine.cc cuda/forward.cc cuda/forward_attention.cc cuda/forward_moe.cc cuda/limits.cc
  cuda/sequence.cc cuda/upload.cc cuda/weights.cc)
target_compile_definitions(agentd_model PUBLIC AGENTD_HAS_CUDA)

# Each skips with a message where no device is.
foreach(test mix_test rows_test route_test pool_test attention_test gemm_test limits_test)
  agentd_test(cuda_${test} SOURCES cuda/${test}.cc DEPS agentd_model agentd_reference TIMEOUT 600)
endforeach()
agentd_test(cuda_exchange_test SOURCES cuda/exchange_test.cc DEPS agentd_model)
if(TARGET cuda_exchange_test)
  target_compile_definitions(cuda_exchange_test PRIVATE AGENTD_TEST_NEEDS_DEVICE)
endif()
# What an engine promises holds on every backend.
foreach(test golden_test engine_test property_test)
  agentd_test(cuda_${test} SOURCES cpu/${test}.cc DEPS agentd_model TIMEOUT 600)
  if(TARGET cuda_${test})
    target_compile_definitions(cuda_${test} PRIVATE AGENTD_TEST_BACKEND="cuda" AGENTD_TEST_NEEDS_DEVICE)
  endif()
endforeach()
