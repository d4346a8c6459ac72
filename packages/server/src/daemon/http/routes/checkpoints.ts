import {
  BuffersRequest,
  CheckpointName,
  CkptError,
  PullRequest,
  type RegisterAnswer,
  RegisterRequest,
  TensorsRequest,
  UpdateRequest,
} from '@ckpt/core'
import { type } from 'arktype'
import { type Context, Hono } from 'hono'
import { json, keepOpen, LARGE_BODY_BYTES_MAX } from '../body.ts'
import type { Daemon, DaemonEnv, Listener } from '../../context.ts'
import { log } from '../../log.ts'
import type { UpdateHandle } from '../../updates/updates.ts'

/** `/v1/checkpoints`: what is held, and what is done with it. */
export function checkpointRoutes(daemon: Daemon) {
  const { registry } = daemon
  return new Hono<DaemonEnv>()
    .get('/', (c) => c.json({ checkpoints: registry.list() }))
    .get('/:name', (c) => c.json(registry.describe(nameOf(c))))
    .post('/:name/files', json(RegisterRequest), async (c) => {
      const name = nameOf(c)
      const request = c.req.valid('json')
      checkTransport(daemon, c.env.listener, request)
      const { rank } = c.env.listener
      const answer = await registry.register(name, request, rank)
      // one that is still being read is about to be updated from; one rank's files are not all of a checkpoint
      if (!answer.reading && rank === null) daemon.updates.prepare(name)
      return c.json(registered(daemon, answer), answer.reading ? 202 : 200)
    })
    .post('/:name/buffers', json(BuffersRequest), async (c) => {
      const request = c.req.valid('json')
      const answer = await registry.buffers(nameOf(c), request)
      // whoever went before it heard of its buffers never writes into them
      if (request.hold !== true && !c.req.raw.signal.aborted) return c.json(answer)
      return daemon.bufferHolds.answer(answer)
    })
    .post('/:name/tensors', json(TensorsRequest, LARGE_BODY_BYTES_MAX), async (c) => {
      const answer = await registry.tensors(nameOf(c), c.req.valid('json'))
      daemon.updates.prepare(nameOf(c))
      return c.json(registered(daemon, answer))
    })
    .post('/:name/pull', json(PullRequest), async (c) => {
      const request = c.req.valid('json')
      requirePull(daemon, c.env.listener, request)
      // other daemons hold their memory for it
      const answer = await daemon.pulls.pull(nameOf(c), request, c.req.raw.signal)
      daemon.updates.prepare(nameOf(c))
      return c.json(registered(daemon, answer))
    })
    .delete('/:name', async (c) => {
      const name = nameOf(c)
      keepOpen(c)
      const answer = await registry.drop(name, { force: flagOf(c, 'force') })
      daemon.rankCalls.forget(name)
      daemon.updates.leader?.versions.forget(name)
      if (answer.existed) log.info('dropped {name}', { name })
      return c.json(answer)
    })
    .post('/:name/gather-metas', async (c) => {
      const name = nameOf(c)
      keepOpen(c)
      const { rank } = c.env.listener
      const gathered = rank === null ? daemon.gather(name) : daemon.rankCalls.gather(name, rank)
      return c.json(await gathered)
    })
    .post('/:name/update', json(UpdateRequest), async (c) => {
      const request = c.req.valid('json')
      const handle = await startUpdate(daemon, nameOf(c), request, c.env.listener)
      c.header('ckpt-update-id', handle.id)
      c.set('logged', true)
      if (request.wait === false) return c.json(daemon.updates.state(handle.id), 202)
      // nothing here listens to the client's disconnect: it does not end an update
      return c.json(await handle.done, 200)
    })
}

async function startUpdate(
  daemon: Daemon,
  name: string,
  request: UpdateRequest,
  listener: Listener,
): Promise<UpdateHandle> {
  if (listener.rank !== null) return await daemon.rankCalls.update(name, request, listener.rank)
  return daemon.start(name, request)
}

/** Who can open the private socket may read any file; who has only the token may read none, unless directories were named. */
function checkTransport(daemon: Daemon, listener: Listener, request: RegisterRequest): void {
  if (listener.transport === 'unix' || daemon.allowedDirs !== null) return
  if (request.files.length === 0) return
  throw new CkptError(
    'path_not_allowed',
    `${request.files[0]}: over TCP files are registered from the directories of --allow-dir only, and none was named`,
  )
}

/** It connects to any address, and reads a file, in the name of whoever asks. */
function requirePull({ cluster }: Daemon, { transport }: Listener, request: PullRequest): void {
  if (transport !== 'unix') {
    const message = `${request.cluster_token_file}: checkpoints of other daemons are copied over the Unix socket only`
    throw new CkptError('path_not_allowed', message)
  }
  if (cluster === null) return
  const message =
    'this daemon belongs to a cluster, whose updates bring its engines what the others hold: it copies nothing'
  throw new CkptError('not_supported', message)
}

function registered(daemon: Daemon, answer: RegisterAnswer): RegisterAnswer {
  daemon.rankCalls.forget(answer.name)
  const what = answer.reading ? 'reading' : 'registered'
  log.info(`${what} {name}: {tensors} tensors, {bytes} bytes in {seconds} s`, { ...answer })
  return answer
}

function nameOf(context: Context<DaemonEnv>): string {
  const name = CheckpointName(context.req.param('name'))
  if (!(name instanceof type.errors)) return name
  throw new CkptError('bad_request', `a checkpoint's name ${name.summary}`)
}

function flagOf(context: Context<DaemonEnv>, key: string): boolean {
  const value = context.req.query(key)
  if (value === undefined || value === 'false' || value === '0') return false
  if (value === '' || value === 'true' || value === '1') return true
  throw new CkptError('bad_request', `${key} is true or false, not '${value}'`)
}
