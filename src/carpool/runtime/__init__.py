"""The asyncio driver of the core, and the library's faces of it: `Batcher`, `@batched`, `BlockingBatcher`."""
