// The end of a login in a browser: it is sent back to a port of this machine that is open for one
// answer.
#ifndef AGENTD_CTL_LOGIN_LISTENER_H_
#define AGENTD_CTL_LOGIN_LISTENER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace agentd::ctl {

// One thread.
class LoginListener {
 public:
  // On 127.0.0.1 alone. `port` 0: one that is free.
  static absl::StatusOr<LoginListener> Open(uint16_t port);

  // "http://127.0.0.1:PORT/callback"
  const std::string& redirect_uri() const { return redirect_uri_; }

  // The address that a browser asks for with `state` in its query, or that somebody types or pastes
  // on standard input (of a browser on another machine); everything else is answered with 404 and
  // waited on. DeadlineExceeded after `seconds`; a browser that does not finish its request is not
  // waited for longer than some seconds.
  absl::StatusOr<std::string> Wait(const std::string& state, int seconds);

 private:
  LoginListener(UniqueFd listener, std::string redirect_uri)
      : listener_(std::move(listener)), redirect_uri_(std::move(redirect_uri)) {}
  std::optional<std::string> Serve(const std::string& state) const;

  UniqueFd listener_;
  std::string redirect_uri_;
  std::string typed_;
  bool input_open_ = true;
};

// The value of `name` in the query of `url` as it stands there; "" if there is none.
std::string QueryValue(std::string_view url, std::string_view name);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_LOGIN_LISTENER_H_
