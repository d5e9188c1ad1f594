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
  cuda/ceiling.cc cuda/device.cc cuda/engine.cc cuda/expert_cache.cc cuda/expert_placement.cc cuda/forward.cc cuda/forward_attention.cc
  cuda/forward_moe.cc cuda/limits.cc cuda/sequence.cc cuda/transfer.cc cuda/upload.cc cuda/weights.cc)
target_compile_definitions(agentd_model PUBLIC AGENTD_HAS_CUDA)

# With rings of stages in shared memory, which whole warps give back (WarpArrive in cuda/barrier.cuh).
set(AGENTD_RING_KERNELS cuda/attend_group.cu cuda/gemm_few.cu cuda/gemm_many.cu)
add_subdirectory(cuda/emulator)

# A test of the backend: on a device (skips with a message where none is) and, with what GTEST_FILTER names, on the emulated
# one, where some take minutes: those run by hand.
function(agentd_cuda_test test source filter)
  if(NOT AGENTD_TESTS)
    return()
  endif()
  add_library(cuda_${test}_objects OBJECT ${source})
  target_link_libraries(cuda_${test}_objects PRIVATE agentd_model GTest::gmock)
  target_compile_definitions(cuda_${test}_objects PRIVATE AGENTD_TEST_BACKEND="cuda" AGENTD_TEST_NEEDS_DEVICE)
  set(objects $<TARGET_OBJECTS:cuda_${test}_objects>)
  if(NOT AGENTD_CUDA STREQUAL "HEADERS")
    agentd_test(cuda_${test} SOURCES ${objects} DEPS agentd_model agentd_reference TIMEOUT 600)
    set_target_properties(cuda_${test} PROPERTIES LINKER_LANGUAGE CXX)
  endif()
  if(TARGET agentd_emulator AND filter)
    # Objects come before libraries: of agentd_model no kernel is linked then, nor anything of the CUDA runtime.
    agentd_test(emulated_${test} SOURCES ${objects} $<TARGET_OBJECTS:agentd_emulated_kernels>
      $<TARGET_OBJECTS:agentd_emulated_ring_kernels> $<TARGET_OBJECTS:agentd_emulator>
      DEPS agentd_model agentd_reference TIMEOUT 600)
    set_target_properties(emulated_${test} PROPERTIES LINKER_LANGUAGE CXX)
    set_property(TEST emulated_${test} APPEND PROPERTY ENVIRONMENT GTEST_FILTER=${filter})
  endif()
endfunction()
foreach(test mix_test rows_test route_test pool_test gemm_test limits_test expert_cache_test expert_placement_test)
  agentd_cuda_test(${test} cuda/${test}.cc *)
endforeach()
agentd_cuda_test(attention_test cuda/attention_test.cc -*.SelectsOfManyLongRows:*.AttentionDependsOnTheRowAlone)
agentd_cuda_test(host_experts_test cuda/host_experts_test.cc */LowPrecision)
agentd_cuda_test(exchange_test cuda/exchange_test.cc */1)
# What an engine promises holds on every backend.
agentd_cuda_test(golden_test cpu/golden_test.cc HfA.LogitsAtEveryPosition)
agentd_cuda_test(engine_test cpu/engine_test.cc RunLayer.*:Draft.*:*/Determinism.ExportAndImport/LowPrecision)
agentd_cuda_test(property_test cpu/property_test.cc "")

# The same tests with kernels in which every lane arrives at the rings' barriers, as compute-sanitizer's racecheck wants them
# (barrier.cuh). Built when asked for by name: racecheck_golden_test for a device, emulated_racecheck_{gemm,attention}_test without one.
function(agentd_racecheck_test name test kernels)
  add_executable(${name} EXCLUDE_FROM_ALL $<TARGET_OBJECTS:cuda_${test}_objects> ${kernels} ${ARGN})
  target_link_libraries(${name} PRIVATE agentd_model agentd_reference GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endfunction()
if(AGENTD_TESTS AND NOT AGENTD_CUDA STREQUAL "HEADERS")
  add_library(agentd_racecheck_kernels OBJECT EXCLUDE_FROM_ALL ${AGENTD_RING_KERNELS})
  target_compile_definitions(agentd_racecheck_kernels PRIVATE AGENTD_RACECHECK)
  target_link_libraries(agentd_racecheck_kernels PRIVATE agentd_model)
  agentd_racecheck_test(racecheck_golden_test golden_test $<TARGET_OBJECTS:agentd_racecheck_kernels>)
endif()
if(TARGET agentd_emulator)
  foreach(test gemm_test attention_test)
    agentd_racecheck_test(emulated_racecheck_${test} ${test} $<TARGET_OBJECTS:agentd_emulated_racecheck_kernels>
      $<TARGET_OBJECTS:agentd_emulated_kernels> $<TARGET_OBJECTS:agentd_emulator>)
  endforeach()
endif()
