/** Worker of one tensor-parallel rank of the reference engine: one request at a time, in which it may block. */
import { type Library, openLibrary, ZmqContext } from '@ckpt/cuda'
import type { HeldTensor, RankEnvelope, RankReply, RankRequest, RankSettings } from './messages.ts'
import { Parameters } from './parameters.ts'
import { WorkerConversation } from './worker-conversation.ts'

declare const self: Worker

function reply(message: RankReply): void {
  self.postMessage(message)
}

class Rank {
  readonly #settings: RankSettings
  readonly #library: Library
  readonly #context = new ZmqContext()
  readonly #parameters: Parameters
  #last: WorkerConversation | null = null

  constructor(settings: RankSettings) {
    this.#settings = settings
    this.#library = openLibrary(settings.library)
    const { device, rank, size } = settings
    this.#parameters = new Parameters(this.#library, device, rank, size)
  }

  update(request: Extract<RankRequest, { type: 'update' }>): void {
    const { device, rank, dialect, graceMs, signal } = this.#settings
    if (request.address === null) throw new Error(`KeyError: rank ${rank} is not in the map`)
    const { address, timeoutMs, faults } = request
    const task = { address, dialect, timeoutMs, graceMs, device, rank, faults }
    this.#last?.close()
    const hooks = {
      torn: (torn: boolean) => reply({ type: 'torn', torn }),
      exit: () => reply({ type: 'exit' }),
    }
    this.#last = new WorkerConversation(
      this.#context,
      this.#library,
      this.#parameters,
      signal,
      task,
      hooks,
    )
    this.#last.run()
  }

  hash(): Record<string, HeldTensor> {
    return this.#parameters.hash()
  }

  close(): void {
    this.#last?.close()
    this.#context.close()
    this.#parameters.free()
  }
}

let started: Rank | null = null

/** Does one request; the tensors when it asks for their hashes. */
function handle(request: RankRequest): Record<string, HeldTensor> | undefined {
  if (request.type === 'start') {
    started = new Rank(request.settings)
    return undefined
  }
  if (started === null) throw new Error('the rank is not started')
  if (request.type === 'hash') return started.hash()
  if (request.type === 'update') started.update(request)
  else started.close()
  return undefined
}

self.onmessage = (message: MessageEvent<RankEnvelope>) => {
  const { id, request } = message.data
  try {
    reply({ type: 'done', id, error: null, tensors: handle(request) })
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error)
    reply({ type: 'done', id, error: text })
  }
}
