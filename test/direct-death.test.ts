/** Who dies in the middle of a direct update, and what the others then say: three processes on the host library. */
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import { randomTensor, writeSafetensors } from './support/checkpoint.ts'
import {
  CKPT,
  request,
  type Scratch,
  type Started,
  scratch,
  start,
  startHostDaemon,
} from './support/process.ts'

const TIMEOUT_MS = 60_000
/** An engine that says nothing is given up after so many seconds. */
const UPDATE_SECONDS = 8

describe('in the middle of a direct update', () => {
  let dir: Scratch
  let socket: string
  let daemon: Started
  let engine: Started

  beforeEach(async () => {
    dir = scratch()
    ;({ daemon, socket } = await startHostDaemon(dir))
  })

  afterEach(async () => {
    await engine?.stop()
    await daemon?.stop()
    dir?.remove()
  })

  const startEngine = (...more: string[]) => {
    const options = ['--listen', '127.0.0.1:0', '--devices', 'host:1', '--direct', ...more]
    return start([...CKPT, 'engine', ...options], /ready at (\S+)/)
  }

  async function register(seed: number): Promise<void> {
    const path = join(dir.path, 'model.safetensors')
    const tensors = Array.from({ length: 20 }, (_, i) => {
      return randomTensor(seed, `layer.${i}.w`, 'BF16', 2, 128, 64 + i)
    })
    writeSafetensors(path, tensors)
    const body = { files: [path], replace: true }
    await request(socket, 'POST', '/v1/checkpoints/model/files', body)
  }

  const update = (more: object = {}) => {
    const body = { update_url: engine.ready[1], pause: 'abort', timeout: UPDATE_SECONDS, ...more }
    return request(socket, 'POST', '/v1/checkpoints/model/update', body)
  }

  const weights = async (): Promise<any> =>
    await (await fetch(`${engine.ready[1]}/v1/weights`)).json()

  /** Through the ring; the next one is direct. */
  async function firstUpdate(): Promise<void> {
    await register(1)
    expect((await update()).body).toMatchObject({ mode: 'pipelined' })
    await register(2)
  }

  test(
    'the engine dies: it is torn, nothing of it stays open, and one that is started again is healed',
    async () => {
      engine = await startEngine('--fault', 'exit@1:direct')
      await firstUpdate()
      const { status, body } = await update()
      expect(status).toBe(502)
      expect(body.error.code).toMatch(/engine_(failed|disconnected|unreachable)/)
      const { body: state } = await request(socket, 'GET', '/v1/status')
      expect(state.engines).toMatchObject([{ torn: true }])
      expect(state.memory.quarantined_bytes).toBe(0)
      await engine.exited
      engine = await startEngine()
      expect((await update()).status).toBe(200)
      expect(await weights()).toMatchObject({ torn: false })
    },
    TIMEOUT_MS,
  )

  test(
    'the daemon dies: the engine lives, torn and paused, and the next daemon knows and heals it',
    async () => {
      engine = await startEngine('--fault', 'hang@1:direct')
      await firstUpdate()
      const lost = update({ update_id: 'lost' }).catch(() => null)
      for (let phase = ''; phase !== 'release'; ) {
        phase = (await request(socket, 'GET', '/v1/updates/lost')).body.phase ?? ''
        await Bun.sleep(10)
      }
      await daemon.stop('SIGKILL')
      await lost
      // answers when its worker has noticed
      expect(await weights()).toMatchObject({ torn: true })
      ;({ daemon, socket } = await startHostDaemon(dir))
      const { body: state } = await request(socket, 'GET', '/v1/status')
      expect(state.engines).toMatchObject([{ url: engine.ready[1], torn: true }])
      expect(await (await fetch(`${engine.ready[1]}/is_paused`)).json()).toEqual({
        is_paused: true,
      })
      await register(2)
      expect((await update()).body).toMatchObject({ mode: 'pipelined' })
      expect(await weights()).toMatchObject({ torn: false })
      expect(await (await fetch(`${engine.ready[1]}/is_paused`)).json()).toEqual({
        is_paused: false,
      })
    },
    TIMEOUT_MS,
  )
})
