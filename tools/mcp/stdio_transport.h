// MCP over the standard input and output of a server that runs as a process.
#ifndef AGENTD_TOOLS_MCP_STDIO_TRANSPORT_H_
#define AGENTD_TOOLS_MCP_STDIO_TRANSPORT_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/unique_fd.h"
#include "tools/mcp/transport.h"

namespace agentd::tools::mcp {

// A running server process, whoever started it. All descriptors stay open until it is destroyed
// or, for input, until CloseInput. The destructor leaves no process behind.
class StdioPeer {
 public:
  virtual ~StdioPeer() = default;
  virtual int input() const = 0;   // what is written here the server reads
  virtual int output() const = 0;  // what it writes to its standard output
  virtual int error() const = 0;   // to its standard error; -1 if that is not kept apart
  virtual void CloseInput() = 0;
  // Ends it and all that it started, at once. Any thread.
  virtual void Kill() = 0;
  // How it ended, in words ("exit code 1", "killed by signal 9"); "" while it runs or if that is
  // not known. Any thread.
  virtual std::string HowItEnded() = 0;
};

// The process must ignore SIGPIPE. A reader thread lives as long as the transport.
class StdioTransport : public Transport {
 public:
  explicit StdioTransport(std::unique_ptr<StdioPeer> peer);
  // Gives the server a moment to end after its input was closed, then kills it.
  ~StdioTransport() override;
  StdioTransport(const StdioTransport&) = delete;
  StdioTransport& operator=(const StdioTransport&) = delete;

  void Start(Receiver receiver) override;
  absl::Status Send(const Outgoing& message, Waiter* waiter) override;
  absl::Status Health() const override;
  std::string Clues() const override;
  void SetProtocol(const std::string& /*version*/, bool /*stateless*/) override {}
  bool is_http() const override { return false; }
  void Finish() override;
  void Abort() override { Die("it was ended"); }

 private:
  absl::Status Write(const std::string& line, Waiter* waiter);
  void ReadLoop();
  // False when there is nothing more to read.
  bool ReadOutput();
  bool ReadError();
  void Line(std::string_view line);
  void Die(const std::string& why);

  const std::unique_ptr<StdioPeer> peer_;
  Receiver receiver_;
  std::thread reader_;
  UniqueFd wake_;                  // an eventfd: the reader shall end
  std::atomic<bool> done_{false};  // nothing more comes from the server

  std::mutex write_mutex_;  // held while one message is written
  bool input_open_ = true;  // guarded by write_mutex_

  // Of the reader thread alone.
  std::string line_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::string why_dead_;     // "" while alive
  std::string error_tail_;   // the end of its standard error
  std::string first_noise_;  // the first line of its output that was no message
  int64_t noise_bytes_ = 0;  // of all such lines
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_STDIO_TRANSPORT_H_
