// Runs a client's bytes through what the proxy does with a request's header, for its tests and
// fuzzer.
#ifndef AGENTD_SANDBOX_EGRESS_REQUEST_TESTING_H_
#define AGENTD_SANDBOX_EGRESS_REQUEST_TESTING_H_

#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/write.hpp>
#include <sstream>
#include <string>
#include <string_view>

#include "sandbox/egress_request.h"

namespace agentd::sandbox {

struct PreparedRequest {
  int status = 0;       // of the refusal; 0: it may go on
  std::string reason;   // of the refusal
  EgressTarget target;  // as far as understood
  std::string header;   // that goes upstream
};

// What the proxy makes of a client's first bytes; status 400 also when they end in the header.
inline PreparedRequest PrepareBytes(std::string_view bytes, const EgressPolicy& policy) {
  boost::beast::http::request_parser<boost::beast::http::buffer_body> parser;
  parser.header_limit(16 * 1024);
  parser.body_limit(boost::none);
  boost::system::error_code error;
  PreparedRequest prepared;
  while (!parser.is_header_done() && !error && !bytes.empty())
    bytes.remove_prefix(parser.put({bytes.data(), bytes.size()}, error));
  if (!parser.is_header_done()) {
    prepared.status = 400;
    prepared.reason = error.message();
    return prepared;
  }
  if (const auto refusal = PrepareEgressRequest(parser.get(), policy, &prepared.target)) {
    prepared.status = refusal->status;
    prepared.reason = refusal->reason;
  } else if (!prepared.target.tunnel) {
    std::ostringstream header;
    header << parser.get().base();
    prepared.header = header.str();
  }
  return prepared;
}

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_REQUEST_TESTING_H_
