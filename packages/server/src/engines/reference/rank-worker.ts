/** Worker of one tensor-parallel rank of the reference engine: one request at a time, in which it may block. */
import { type Library, openLibrary, ZmqContext } from '@ckpt/cuda'
import { DaemonSocket } from './daemon-socket.ts'
import { DirectWorker } from './direct-worker.ts'
import type {
  Done,
  HeldTensor,
  RankEnvelope,
  RankReply,
  RankRequest,
  RankSettings,
} from './messages.ts'
import type { UpdateWay } from './way.ts'
import { Parameters } from './parameters.ts'
import { whyNotPlaced } from './placement.ts'
import type { UpdateProgress } from './update-task.ts'
import { WorkerConversation } from './worker-conversation.ts'

type UpdateRequest = Extract<RankRequest, { type: 'update' }>

declare const self: Worker

function reply(message: RankReply): void {
  self.postMessage(message)
}

class Rank {
  readonly #settings: RankSettings
  readonly #library: Library
  readonly #context = new ZmqContext()
  readonly #parameters: Parameters
  #last: WorkerConversation | DirectWorker | null = null
  #torn = false

  constructor(settings: RankSettings) {
    this.#settings = settings
    this.#library = openLibrary(settings.library)
    const { device, shardedBy: by, rank, size } = settings
    this.#parameters = new Parameters(this.#library, device, { by, rank, size })
  }

  update(request: UpdateRequest): Done {
    const { address } = request
    if (address === null) {
      const error = `KeyError: rank ${this.#settings.rank} is not in the map`
      return this.#ended({ phase: 'begin', tensors: 0, placed: false }, error)
    }
    this.#last?.close()
    const conversation = this.#conversation(request.way, address, request)
    this.#last = conversation
    try {
      conversation.run()
    } catch (error) {
      return this.#ended(conversation.progress, words(error))
    }
    return this.#ended(conversation.progress, null)
  }

  #ended(progress: UpdateProgress, error: string | null): Done {
    const notPlaced = this.#settings.direct ? whyNotPlaced(this.#parameters) : null
    const phase = error === null ? null : progress.phase
    return { error, update: { ...progress, phase, notPlaced } }
  }

  #conversation(way: UpdateWay, address: string, { timeoutMs, faults }: UpdateRequest) {
    const { device, rank, dialect, graceMs, signal } = this.#settings
    const library = this.#library
    const socket = new DaemonSocket(this.#context, library, signal, { timeoutMs, graceMs })
    const task = { address, dialect, device, rank, faults, torn: this.#torn }
    const hooks = {
      torn: (torn: boolean) => {
        this.#torn = torn
        reply({ type: 'torn', torn })
      },
      holding: () => reply({ type: 'holding' }),
      exit: () => reply({ type: 'exit' }),
    }
    const parameters = this.#parameters
    return way === 'direct'
      ? new DirectWorker(socket, parameters, task, hooks)
      : new WorkerConversation(socket, library, parameters, task, hooks)
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

function handle(request: RankRequest): Done {
  if (request.type === 'start') {
    started = new Rank(request.settings)
    return { error: null }
  }
  if (started === null) throw new Error('the rank is not started')
  if (request.type === 'update') return started.update(request)
  if (request.type === 'hash') return { error: null, tensors: started.hash() }
  started.close()
  return { error: null }
}

function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

self.onmessage = (message: MessageEvent<RankEnvelope>) => {
  const { id, request } = message.data
  try {
    reply({ type: 'done', id, ...handle(request) })
  } catch (error) {
    reply({ type: 'done', id, error: words(error) })
  }
}
