/** vLLM's own weight transfer, spoken by our daemon: a server with vLLM 0.26's routes takes the chunks out of the ring on the host library. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import { loadPickle, type PickleTuple } from '@ckpt/core/engine/pickle-machine'
import { type Library, openLibrary } from '@ckpt/cuda'
import { randomTensor, readSafetensors, writeSafetensors } from './support/checkpoint.ts'
import { request, type Scratch, type Started, scratch, startHostDaemon } from './support/process.ts'

const sha256Of = (bytes: Uint8Array) => new Bun.CryptoHasher('sha256').update(bytes).digest('hex')
/** As torch names the types of {@link writeModel}; vLLM takes `getattr(torch, name)`. */
const TORCH: Readonly<Record<string, string>> = { BF16: 'bfloat16', F32: 'float32', U8: 'uint8' }
const RULES = { allowed: () => true, callable: () => false }

interface Faults {
  /** Answers this chunk with an error. */
  readonly failAt?: number
  /** Does not answer this chunk until it is let go. */
  readonly hangAt?: number
  /** An update before has not been finished. */
  readonly active?: boolean
  readonly version?: string
  /** Of its own weight transfer; null: it was started without. */
  readonly backend?: string | null
  readonly worldSize?: number
  /** A version that does not know it. */
  readonly refusesPackedInit?: boolean
}

interface Info {
  readonly names: string[]
  readonly dtype_names: string[]
  readonly shapes: number[][]
  readonly tensor_sizes: number[]
  readonly ipc_handles_pickled: string
  readonly packed?: boolean
}

/** A server of one worker, with vLLM's order of calls. */
class NativeVllm {
  readonly calls: string[] = []
  /** SHA-256 of each tensor that came, and how it was said to look. */
  readonly held = new Map<string, { sha256: string; dtype: string; shape: number[] }>()
  readonly bodies: Record<string, any> = {}
  readonly #library: Library
  faults: Faults
  readonly #server: ReturnType<typeof Bun.serve>
  readonly #hang = Promise.withResolvers<Response>()
  /** Updates whose ring could not be mapped any more when they were finished. */
  ringsGone = 0
  /** Chunks that were loaded into layers which an update before had left half loaded. */
  mixed = 0
  #chunks = 0
  #halfLoaded = false
  #goesOn = false
  #active: boolean
  #lastHandle: { readonly handle: Uint8Array; readonly bytes: number } | null = null

  constructor(library: Library, faults: Faults = {}, port = 0) {
    this.#library = library
    this.faults = faults
    this.#active = faults.active ?? false
    this.#server = Bun.serve({ hostname: '127.0.0.1', port, fetch: (req) => this.#answer(req) })
  }

  get port(): number {
    return this.#server.port as number
  }

  get url(): string {
    return `http://127.0.0.1:${this.#server.port}`
  }

  /** The chunk that hangs is answered. */
  letGo(): void {
    this.#hang.resolve(Response.json({}))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.letGo()
    await this.#server.stop(true)
  }

  async #answer(req: Request): Promise<Response> {
    const { pathname } = new URL(req.url)
    if (req.method === 'GET' && pathname === '/health') return new Response('')
    if (req.method === 'GET' && pathname === '/version') {
      return Response.json({ version: this.faults.version ?? '0.26.0' })
    }
    if (req.method === 'GET' && pathname === '/server_info') return this.#info(req)
    if (req.method === 'GET' && pathname === '/get_world_size') {
      return Response.json({ world_size: this.faults.worldSize ?? 1 })
    }
    if (req.method === 'GET')
      return new Response('', { status: pathname === '/metrics' ? 404 : 405 })
    const text = await req.text()
    const body = text === '' ? {} : JSON.parse(text)
    this.calls.push(pathname)
    this.bodies[pathname] = body
    try {
      return await this.#post(pathname, body)
    } catch (error) {
      return Response.json({ error: { message: (error as Error).message } }, { status: 500 })
    }
  }

  #info(req: Request): Response {
    this.calls.push('/server_info')
    expect(new URL(req.url).searchParams.get('config_format')).toBe('json')
    const { backend = 'ipc' } = this.faults
    const transfer = backend === null ? null : { backend }
    const parallel_config = { worker_extension_cls: '', tensor_parallel_size: 1 }
    return Response.json({ vllm_config: { parallel_config, weight_transfer_config: transfer } })
  }

  #post(pathname: string, body: any): Response | Promise<Response> {
    switch (pathname) {
      case '/collective_rpc':
        // the words of 0.26
        throw new Error(
          `Call to collective_rpc method failed: Method '${body.method}' is not implemented.`,
        )
      case '/init_weight_transfer_engine':
        if (this.faults.refusesPackedInit && body.init_info.packed) throw new Error('unexpected')
        return Response.json({})
      case '/reset_prefix_cache':
      case '/pause':
      case '/resume':
        return Response.json({})
      case '/start_weight_update':
        if (this.#active)
          throw new Error('start_weight_update called while a weight update is already active.')
        this.#active = true
        // layers that are half loaded stay so
        this.#goesOn = this.#halfLoaded
        return Response.json({})
      case '/update_weights':
        try {
          return this.#take(body.update_info)
        } catch (error) {
          // as 0.26 does, which then begins anew without complaint
          this.#active = false
          throw error
        }
      case '/finish_weight_update':
        if (!this.#active) throw new Error('finish_weight_update called without a start')
        this.#active = false
        this.#halfLoaded = false
        this.#mapAgain()
        return Response.json({})
      default:
        return new Response('', { status: 404 })
    }
  }

  /** As vLLM does since 0.30, it keeps the mapping until the update is finished. */
  #mapAgain(): void {
    if (this.#lastHandle === null) return
    const { handle, bytes } = this.#lastHandle
    try {
      this.#library.memoryFree(this.#library.memoryOpen(0, handle, bytes))
    } catch {
      this.ringsGone++
    }
  }

  #take(info: Info): Response | Promise<Response> {
    const chunk = this.#chunks++
    this.#halfLoaded = true
    if (this.#goesOn) this.mixed++
    if (chunk === this.faults.failAt) throw new Error('the engine refuses this chunk')
    if (chunk === this.faults.hangAt) return this.#hang.promise
    const handles = loadPickle(Uint8Array.fromBase64(info.ipc_handles_pickled), RULES) as Map<
      string,
      PickleTuple
    >
    const [[uuid, value] = []] = [...handles]
    expect(uuid).toMatch(/^(?!GPU-)/)
    const { items } = value!
    const [, size, , offset, , , , handle, bytes] = items as any[]
    this.#lastHandle = { handle, bytes }
    const memory = this.#library.memoryOpen(0, handle, bytes)
    try {
      let at = offset as number
      for (const [i, name] of info.names.entries()) {
        const sha256 = this.#library.memorySha256(memory, at, info.tensor_sizes[i]!).toHex()
        this.held.set(name, { sha256, dtype: info.dtype_names[i]!, shape: info.shapes[i]! })
        at += info.tensor_sizes[i]!
      }
      expect(at - offset).toBe((size as PickleTuple).items[0] as number)
    } finally {
      this.#library.memoryFree(memory)
    }
    return Response.json({})
  }
}

/** Tensors that follow each other with and without gaps, a scalar, several buckets. */
function writeModel(dir: string, seed: number): string[] {
  const tensor = (name: string, dtype: string, itemBytes: number, ...shape: number[]) =>
    randomTensor(seed, name, dtype, itemBytes, ...shape)
  const path = join(dir, `model-${seed}.safetensors`)
  writeSafetensors(path, [
    tensor('embed', 'BF16', 2, 700, 512),
    tensor('scale', 'F32', 4),
    tensor('odd', 'U8', 1, 13),
    ...Array.from({ length: 30 }, (_, i) =>
      tensor(`layers.${i}.w`, i % 3 === 0 ? 'F32' : 'BF16', i % 3 === 0 ? 4 : 2, 64, 33 + i),
    ),
  ])
  return [path]
}

describe("vLLM's own weight transfer", () => {
  let dir: Scratch
  let daemon: Started
  let socket: string
  let library: Library

  beforeAll(async () => {
    library = openLibrary({ kind: 'host', hostDevices: 1 })
    dir = scratch()
    ;({ daemon, socket } = await startHostDaemon(dir, '--ranks', '1', '--bucket-mib', '1'))
  }, 60_000)

  afterAll(async () => {
    await daemon?.stop()
    dir?.remove()
  })

  async function update(engine: NativeVllm, files: readonly string[], more: object = {}) {
    await request(socket, 'POST', '/v1/checkpoints/native/files', { files, replace: true })
    const body = {
      update_url: engine.url,
      timeout: 20,
      engine: 'vllm',
      engine_method: 'native-ipc',
      ...more,
    }
    return await request(socket, 'POST', '/v1/checkpoints/native/update', body)
  }

  function compare(engine: NativeVllm, files: string[]): void {
    expect(engine.mixed).toBe(0)
    const expected = readSafetensors(files)
    expect([...engine.held.keys()].sort()).toEqual([...expected.keys()].sort())
    for (const [name, held] of engine.held) {
      const { bytes, dtype, shape } = expected.get(name)!
      const wanted = {
        sha256: sha256Of(bytes),
        dtype: TORCH[dtype]!,
        shape: shape.length === 0 ? [1] : shape,
      }
      expect({ name, ...held }).toEqual({ name, ...wanted })
    }
  }

  test('takes updates in a row, each byte as in the files', async () => {
    await using engine = new NativeVllm(library)
    for (const seed of [1, 2, 3]) {
      const files = writeModel(dir.path, seed)
      engine.held.clear()
      const { status, body } = await update(engine, files, { weight_version: `step ${seed}` })
      expect({ status, error: body.error }).toEqual({ status: 200, error: undefined })
      expect(body.mode).not.toBe('direct')
      expect(body.engines).toMatchObject([{ result: 'ok', method: 'native-ipc', torn: false }])
      compare(engine, files)
    }
    const told = (await status()).engines.find(({ url }) => url === engine.url)
    expect(told?.method).toBe('native-ipc')
    expect(engine.bodies['/init_weight_transfer_engine']).toEqual({ init_info: {} })
    expect(engine.bodies['/update_weights'].update_info.packed).toBe(true)
    expect(engine.bodies['/finish_weight_update']).toEqual({ weight_version: 'step 3' })
    // before the first, which it is not known to be whole before, one that brings nothing
    expect(engine.calls.filter((call) => call === '/start_weight_update')).toHaveLength(4)
    expect(engine.calls.at(-1)).toBe('/reset_prefix_cache')
    expect(engine.ringsGone).toBe(0)
  }, 60_000)

  test.each([
    ['0.30.1', {}, true],
    ['0.22.0', {}, false],
    ['0.26.0', { active: true }, false],
    ['0.1.dev11+gabc', {}, true],
    ['dev', { refusesPackedInit: true }, false],
  ])(
    'of version %s (%p)',
    async (version, faults, atInit) => {
      await using engine = new NativeVllm(library, { version, ...faults })
      const files = writeModel(dir.path, 4)
      const { status, body } = await update(engine, files)
      expect({ status, error: body.error }).toEqual({ status: 200, error: undefined })
      compare(engine, files)
      const init = engine.bodies['/init_weight_transfer_engine'].init_info
      expect(init).toEqual(atInit ? { packed: true } : {})
      expect('packed' in engine.bodies['/update_weights'].update_info).toBe(!atInit)
    },
    60_000,
  )

  interface Status {
    readonly memory: { readonly quarantined_bytes: number }
    readonly engines: readonly {
      readonly url: string
      readonly torn: boolean
      readonly method?: string
    }[]
  }

  async function status(): Promise<Status> {
    return (await request(socket, 'GET', '/v1/status')).body
  }

  async function isTorn({ url }: NativeVllm): Promise<boolean | undefined> {
    return (await status()).engines.find((one) => one.url === url)?.torn
  }

  async function quarantineEmpty(): Promise<void> {
    const endMs = performance.now() + 20_000
    while ((await status()).memory.quarantined_bytes > 0) {
      expect(performance.now()).toBeLessThan(endMs)
      await Bun.sleep(50)
    }
  }

  test.each([0, 2])(
    'a chunk (%i) that is refused is told, and the next update mends the engine',
    async (failAt) => {
      const files = writeModel(dir.path, 5)
      await using engine = new NativeVllm(library, { failAt })
      const failed = await update(engine, files)
      expect(failed.status).toBe(502)
      expect(failed.body.error).toMatchObject({
        code: 'engine_failed',
        rank: 0,
        phase: 'transfer',
      })
      expect(failed.body.error.message).toContain('the engine refuses this chunk')
      expect(await isTorn(engine)).toBe(true)
      await quarantineEmpty()
      engine.faults = {}
      engine.calls.length = 0
      expect((await update(engine, files)).status).toBe(200)
      expect(engine.calls.filter((call) => /weight_update/.test(call))).toEqual([
        '/start_weight_update',
        '/finish_weight_update',
        '/start_weight_update',
        '/finish_weight_update',
      ])
      expect(await isTorn(engine)).toBe(false)
      compare(engine, files)
    },
    60_000,
  )

  test('the ring is kept while a chunk is not answered, also beyond the update', async () => {
    const files = writeModel(dir.path, 8)
    await using engine = new NativeVllm(library, { hangAt: 1 })
    const failed = await update(engine, files, { timeout: 4 })
    expect(failed.body.error).toMatchObject({
      code: 'update_timeout',
      rank: 0,
      phase: 'transfer',
    })
    expect(await isTorn(engine)).toBe(true)
    expect((await status()).memory.quarantined_bytes).toBeGreaterThan(0)
    engine.faults = {}
    engine.letGo()
    await quarantineEmpty()
    expect((await update(engine, files)).status).toBe(200)
    expect(await isTorn(engine)).toBe(false)
    compare(engine, files)
  }, 60_000)

  test('a version whose transfer has no packed form is refused before anything is changed', async () => {
    await using engine = new NativeVllm(library, { version: '0.21.0' })
    const { status, body } = await update(engine, writeModel(dir.path, 7))
    expect(status).not.toBe(200)
    expect(body.error.message).toContain('vLLM 0.21.0 takes no packed weights')
    expect(engine.calls).toEqual([])
    const { body: state } = await request(socket, 'GET', '/v1/status')
    const marks = state.engines.filter((one: any) => one.url === engine.url)
    expect(marks).toMatchObject([{ torn: false }])
  }, 60_000)

  test.each([
    [{ engine: 'sglang' }, "it is vLLM's"],
    [{ mode: 'direct' }, 'nothing tells where the weights lie'],
  ])(
    'is refused where it cannot be (%p)',
    async (more, words) => {
      await using engine = new NativeVllm(library)
      const { status, body } = await update(engine, writeModel(dir.path, 6), more)
      expect(status).not.toBe(200)
      expect(body.error.code).toBe('not_supported')
      expect(body.error.message).toContain(words)
      expect(engine.calls).toEqual([])
    },
    60_000,
  )

  const PLAIN = { engine: undefined, engine_method: undefined }

  test('with plain defaults it is found that there is no extension, once for each start of the engine', async () => {
    const first = await startPlain()
    const calls = ['/collective_rpc', '/server_info', '/init_weight_transfer_engine']
    expect(first.calls.slice(0, 3)).toEqual(calls)
    first.calls.length = 0
    const files = writeModel(dir.path, 10)
    expect((await update(first, files, PLAIN)).body.mode_reason).toContain('not direct')
    compare(first, files)
    expect(first.calls).not.toContain('/collective_rpc')
    await first[Symbol.asyncDispose]()
    await using second = await startPlain(first.port)
    expect(second.calls.slice(0, 3)).toEqual(calls)
  }, 60_000)

  /** An update of it, whose bytes are compared. */
  async function startPlain(port = 0): Promise<NativeVllm> {
    const engine = new NativeVllm(library, {}, port)
    const files = writeModel(dir.path, 9)
    const { status, body } = await update(engine, files, PLAIN)
    expect({ status, error: body.error }).toEqual({ status: 200, error: undefined })
    expect(body.engines).toMatchObject([{ result: 'ok', torn: false }])
    compare(engine, files)
    return engine
  }

  test('after a refused chunk of an update with plain defaults the next one goes the same way', async () => {
    await using engine = new NativeVllm(library, { failAt: 1 })
    const files = writeModel(dir.path, 11)
    const failed = await update(engine, files, PLAIN)
    expect(failed.body.error.message).toContain('the engine refuses this chunk')
    expect(await isTorn(engine)).toBe(true)
    engine.faults = {}
    expect((await update(engine, files, PLAIN)).status).toBe(200)
    expect(await isTorn(engine)).toBe(false)
    compare(engine, files)
  }, 60_000)

  test.each([
    [PLAIN, null, 'no weight transfer of its own: start vLLM with'],
    [
      PLAIN,
      'nccl',
      'its own weight transfer is through nccl, which is not spoken here: start vLLM',
    ],
    [
      { engine_method: 'update_weights_from_ipc' },
      'ipc',
      'its own weight transfer is used where no method is asked for: leave --engine-method out',
    ],
  ])(
    'without an extension it says how to start it (%p, %p)',
    async (more, backend, words) => {
      await using engine = new NativeVllm(library, { backend })
      const { status, body } = await update(engine, writeModel(dir.path, 12), more)
      expect(status).toBe(502)
      expect(body.error.message).toContain("Method 'update_weights_from_ipc' is not implemented.")
      expect(body.error.message).toContain('This vLLM has no worker extension')
      expect(body.error.message).toContain(words)
      expect(engine.calls).toEqual(['/collective_rpc', '/server_info'])
      expect(await isTorn(engine)).toBe(false)
    },
    60_000,
  )

  test.each([PLAIN, {}])(
    'an engine of several ranks is not brought to it by being said to have one (%p)',
    async (more) => {
      await using engine = new NativeVllm(library, { worldSize: 2 })
      const { body } = await update(engine, writeModel(dir.path, 13), more)
      expect(body.error.message).toContain(
        "the engine's update failed before its worker had connected: its own weight transfer is used for engines of one rank, and",
      )
      expect(body.error.message).toContain('has 2: tell all of its ranks')
      expect(engine.calls).not.toContain('/init_weight_transfer_engine')
      expect(await isTorn(engine)).toBe(false)
    },
    60_000,
  )
})
