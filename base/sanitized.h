// Whether this is a build under ASan or TSan: ten to thirty times slower, so tests leave out what
// repeats the same code.
#ifndef AGENTD_BASE_SANITIZED_H_
#define AGENTD_BASE_SANITIZED_H_

namespace agentd {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace agentd

#endif  // AGENTD_BASE_SANITIZED_H_
