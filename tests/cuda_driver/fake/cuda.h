// What the stand-ins for NVIDIA's libraries share: the driver's queues, to which the stand-in for cuBLASLt adds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

extern "C" {
/// Adds work to a stream, or to the graph that it is being captured into.
void fake_enqueue(void* stream, std::function<void()>* work);
/// Said by work that waits for another process: it is run again.
void fake_not_yet();
/// Whether so many bytes are inside one allocation of the device.
bool fake_is_device(uint64_t address, size_t bytes);
/// Whether the calling thread has the context of the device.
bool fake_has_context();
/// Adds a line to the file that FAKE_CUDA_LOG names.
void fake_log(const char* line);
}
