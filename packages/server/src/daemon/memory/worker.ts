import { CkptError } from '@ckpt/core/api/errors'
import { HostMemory } from './host-memory.ts'
import { HostMemoryError } from './host-memory-error.ts'
import type { MemoryCall, MemoryCalls, MemoryMessage, MemoryRequest } from './protocol.ts'

// Modules of core are imported one by one here: its index loads ArkType, which takes longer than all else at start.
declare const self: Worker

let memory: HostMemory | null = null
const running = new Set<Promise<void>>()

function post(message: MemoryMessage): void {
  self.postMessage(message)
}

async function run(message: MemoryRequest): Promise<MemoryCalls[MemoryCall]['answer']> {
  if (message.call === 'start') {
    memory = new HostMemory(message.request, (part, path) => post({ type: 'broken', part, path }))
    return null
  }
  if (memory === null) throw new CkptError('internal', 'the memory Worker was not started')
  switch (message.call) {
    case 'load':
      return memory.load(message.request)
    case 'finish':
      return memory.finish(message.request.part)
    case 'pull':
      return memory.pull(message.request)
    case 'end_pull':
      memory.endPull(message.request.part, message.request.failure)
      return null
    case 'adopt':
      return memory.adopt(message.request)
    case 'share':
      return memory.share(message.request.name, message.request.bytes)
    case 'unshare':
      memory.unshare(message.request.buffers)
      return null
    case 'drop':
      memory.drop(message.request.part)
      return null
    case 'trim':
      memory.trim(message.request.name)
      return null
    case 'serve':
      return memory.serve(message.request.buffers)
    case 'check':
      memory.check(message.request.files)
      return null
    case 'close':
      memory.stop()
      await Promise.all(running)
      await memory.finishAll()
      memory.close()
      return null
  }
}

async function answer(message: MemoryRequest): Promise<void> {
  const { id } = message
  try {
    const value = await run(message)
    post({ type: 'answer', id, answer: value, pinnedBytes: memory?.pinnedBytes ?? 0 })
  } catch (error) {
    post({
      type: 'failure',
      id,
      failure: CkptError.wrap(error).failure,
      memory:
        error instanceof HostMemoryError
          ? { wantedBytes: error.wantedBytes, shortBytes: error.shortBytes }
          : null,
      pinnedBytes: memory?.pinnedBytes ?? 0,
    })
  }
}

self.onmessage = (event: MessageEvent<MemoryRequest>) => {
  const done = answer(event.data)
  if (event.data.call === 'close') return
  running.add(done)
  done.finally(() => running.delete(done))
}
