find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)

agentd_library(agentd_text
  SOURCES inspect.cc inspect_report.cc sampler.cc chat.cc chat_json.cc chat_parse.cc json_python.cc
    tokenizer.cc tokenizer_bpe.cc tokenizer_file.cc tokenizer_split.cc tokenizer_utf8.cc
  PUBLIC agentd_base agentd_json absl::status absl::statusor absl::flat_hash_map nlohmann_json::nlohmann_json
  PRIVATE PkgConfig::PCRE2)
# Lets the compiler run several of the sampler's exponentials at once; the values are the same.
set_source_files_properties(sampler.cc PROPERTIES COMPILE_OPTIONS $<$<NOT:$<CONFIG:Debug>>:-O3>)

agentd_test(tokenizer_test SOURCES tokenizer_test.cc DEPS agentd_text)
agentd_test(chat_test SOURCES chat_test.cc DEPS agentd_text)
agentd_test(json_python_test SOURCES json_python_test.cc DEPS agentd_text)
agentd_test(sampler_test SOURCES sampler_test.cc DEPS agentd_text)
agentd_test(inspect_test SOURCES inspect_test.cc DEPS agentd_text agentd_model)

agentd_fuzzer(fuzz_tokenizer SOURCES fuzz/fuzz_tokenizer.cc DEPS agentd_text)
agentd_fuzzer(fuzz_tokenizer_file SOURCES fuzz/fuzz_tokenizer_file.cc DEPS agentd_text)
agentd_fuzzer(fuzz_chat SOURCES fuzz/fuzz_chat.cc DEPS agentd_text)
if(AGENTD_FUZZ)
  target_compile_definitions(fuzz_tokenizer PRIVATE TOKENIZER_DIR="${PROJECT_SOURCE_DIR}/tests/golden/tok-a")
endif()
