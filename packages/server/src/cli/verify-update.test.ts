import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError, type Failure } from '@ckpt/core'
import { type Scratch, scratch } from '../../../../test/support/process.ts'
import { KnownChecksums } from './known-checksums.ts'
import { verifyUpdate } from './verify-update.ts'

let dir: Scratch
let path: string

beforeEach(() => {
  dir = scratch()
  path = join(dir.path, 'state', 'checksums.json')
})

afterEach(() => dir.remove())

/** Answers as SGLang 0.5.16 does, whose ranks hold what `sums` says. */
function sglang(sums: () => readonly string[], more: Record<string, string> = {}) {
  const ranks = () =>
    sums().map((sum, tp_rank) => ({
      checksums: { 'model.norm.weight': sum, ...more },
      per_gpu_checksum: `all ${sum}`,
      parallelism_info: {
        tp_rank,
        tp_size: sums().length,
        dp_rank: 0,
        dp_size: 1,
        pp_rank: 0,
        pp_size: 1,
        rank: tp_rank,
        size: sums().length,
      },
    }))
  return serve(async (request) => {
    expect(await request.json()).toEqual({ action: 'checksum' })
    const body = { success: true, message: 'Success.', ranks: ranks(), per_engine_checksum: 'x' }
    return Response.json(body)
  })
}

function serve(answer: (request: Request) => Response | Promise<Response>) {
  const server = Bun.serve({ port: 0, routes: { '/weights_checker': { POST: answer } } })
  const target = { url: `http://127.0.0.1:${server.port}/update_weights_from_ipc`, ranks: [0] }
  return { target, [Symbol.asyncDispose]: () => server.stop(true) }
}

function file(name: string, content: string): string {
  mkdirSync(dir.path, { recursive: true })
  writeFileSync(join(dir.path, name), content)
  return join(dir.path, name)
}

async function verify(engines: readonly { target: { url: string } }[], ...files: string[]) {
  const targets = engines.map(({ target }) => ({ ...target, ranks: [0] }))
  const verified = await verifyUpdate(targets, files, await KnownChecksums.open(path))
  return verified.map(({ result, ranks }) => `${result} ${ranks}`)
}

async function failureOf(work: Promise<unknown>): Promise<Failure | null> {
  try {
    await work
    return null
  } catch (error) {
    return CkptError.wrap(error).failure
  }
}

test('what is seen first is recorded, and is what the same files must give later', async () => {
  let sums = ['1', '2']
  await using engine = sglang(() => sums)
  const first = file('a', 'first')
  expect(await verify([engine], first)).toEqual(['recorded 2'])
  expect(await verify([engine], first)).toEqual(['equal 2'])
  // whatever the file is called
  expect(await verify([engine], file('b', 'first'))).toEqual(['equal 2'])
  sums = ['1', '3']
  const failure = await failureOf(verify([engine], first))
  expect(failure).toMatchObject({ code: 'engine_failed', phase: 'post' })
  expect(failure?.message).toMatch(
    /tp 1 of 2, pp 0 of 1, dp 0 of 1, 1 parameters \w{12} is all 3; with the same files it was all 2 on 20/,
  )
  // of other files they are others
  expect(await verify([engine], file('a', 'second'))).toEqual(['recorded 2'])
})

test('engines of one update are compared with each other', async () => {
  await using good = sglang(() => ['1'])
  await using same = sglang(() => ['1'])
  await using other = sglang(() => ['2'])
  const path = file('a', 'first')
  expect(await verify([good, same], path)).toEqual(['recorded 1', 'equal 1'])
  const failure = await failureOf(verify([good, other], path))
  expect(failure?.message).toStartWith(`${other.target.url}: the checksum of tp 0`)
})

test('an engine of another size, or with other parameters, has checksums of its own', async () => {
  await using one = sglang(() => ['1'])
  await using two = sglang(() => ['2', '3'])
  await using more = sglang(() => ['4'], { 'model.bias': '9' })
  const path = file('a', 'first')
  const engines = [one, two, more]
  expect(await verify(engines, path)).toEqual(['recorded 1', 'recorded 2', 'recorded 1'])
  expect(await verify(engines, path)).toEqual(['equal 1', 'equal 2', 'equal 1'])
})

test('an engine without the route is not verified, one that cannot say it fails', async () => {
  const path = file('a', 'first')
  await using without = serve(() => new Response('Not Found', { status: 404 }))
  expect(await verify([without], path)).toEqual(['no_route 0'])
  const failing = [
    [400, '{"success": false, "message": "no memory"}', '400: no memory'],
    [200, '{"success": true, "message": "Success."}', 'answered 200: Success.'],
    [200, '<html>', 'answered 200: not in a form that is known'],
    [200, '{"success": true, "ranks": []}', 'answered 200: not in a form that is known'],
  ] as const
  for (const [status, body, words] of failing) {
    await using engine = serve(() => new Response(body, { status }))
    const failure = await failureOf(verify([engine], path))
    expect(failure).toMatchObject({
      code: 'engine_failed',
      message: expect.stringContaining(words),
    })
  }
  const gone = { target: { url: 'http://127.0.0.1:1' } }
  expect((await failureOf(verify([gone], path)))?.code).toBe('engine_unreachable')
})

test('a file of checksums that cannot be read is named', async () => {
  mkdirSync(join(dir.path, 'state'))
  writeFileSync(path, '{"x": 1}')
  const failure = await failureOf(KnownChecksums.open(path))
  expect(failure?.message).toStartWith(`${path} has no checksums that can be read`)
})

test('the checkpoints that were verified last are kept', async () => {
  const known = await KnownChecksums.open(path)
  for (let i = 0; i < 300; i++) expect(known.compare(`digest ${i}`, 'layout', 'sum')).toBeNull()
  await known.save()
  const later = await KnownChecksums.open(path)
  expect(later.compare('digest 299', 'layout', 'sum')?.checksum).toBe('sum')
  expect(later.compare('digest 44', 'layout', 'sum')?.checksum).toBe('sum')
  expect(later.compare('digest 43', 'layout', 'sum')).toBeNull()
})
