/** The set-up and the last line of the tests, in a small clone of its own with nothing to download. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { ROOT, type Scratch, scratch } from '../test/support/process.ts'

const NODE = Bun.which('node')
let dir: Scratch
beforeAll(() => {
  dir = scratch()
})
afterAll(() => dir.remove())

interface Clone {
  readonly path: string
  run(
    args: string[],
    tools?: readonly string[],
    env?: Record<string, string>,
  ): Promise<{ status: number; stdout: string; stderr: string }>
}

/** A workspace with this very run.mjs, a native build that takes no compiler, and Bun where `bun install` puts it. */
function clone(options: { bun: boolean }): Clone {
  const path = mkdtempSync(join(dir.path, 'clone-'))
  cpSync(join(ROOT, 'scripts/run.mjs'), join(path, 'scripts/run.mjs'))
  const manifest = {
    name: 'small',
    private: true,
    type: 'module',
    devDependencies: { bun: Bun.version },
  }
  writeFileSync(join(path, 'package.json'), JSON.stringify(manifest))
  mkdirSync(join(path, 'packages/cuda/native'), { recursive: true })
  writeFileSync(
    join(path, 'packages/cuda/native/build.sh'),
    '[ "$1" = host ] || exit 0; mkdir -p packages/cuda/lib && echo built >> packages/cuda/lib/log && touch packages/cuda/lib/libckpt_host.so',
  )
  if (options.bun) {
    const bin = join(path, 'node_modules/@oven/bun-here/bin')
    mkdirSync(bin, { recursive: true })
    // packages count as installed: this stands for bun, whose `install` would download
    writeFileSync(
      join(bin, 'bun'),
      `#!/bin/sh\n[ "$1" = install ] && exit 0\nexec ${process.execPath} "$@"\n`,
    )
    chmodSync(join(bin, 'bun'), 0o755)
  }
  return { path, run: (args, tools, env) => runIn(path, args, tools, env) }
}

/** `tools`: the only commands on the PATH beside the shell; the whole PATH of this process without it. */
async function runIn(
  path: string,
  args: string[],
  tools?: readonly string[],
  more: Record<string, string> = {},
) {
  const env: Record<string, string | undefined> = {
    ...process.env,
    CXX: undefined,
    CKPT_NVCC: '/none',
    CUDA_HOME: '/none',
    ...more,
  }
  if (tools !== undefined) {
    const bin = mkdtempSync(join(dir.path, 'bin-'))
    for (const tool of ['bash', 'sh', 'mkdir', 'touch', ...tools]) {
      const found = Bun.which(tool)
      if (found !== null) symlinkSync(found, join(bin, tool))
    }
    env.PATH = bin
  }
  const child = Bun.spawn([NODE!, join(path, 'scripts/run.mjs'), ...args], {
    cwd: dirname(path),
    env,
    stdout: 'pipe',
    stderr: 'pipe',
  })
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ])
  return { status: await child.exited, stdout, stderr }
}

describe.skipIf(NODE === null)('set-up', () => {
  test('each step once, as a line with seconds on stderr', async () => {
    const { path, run } = clone({ bun: true })
    const first = await run(['setup'])
    expect(first.status).toBe(0)
    expect(first.stdout).toBe('')
    expect(first.stderr).toMatch(/^set up packages +\d+\.\d s\nset up host library +\d+\.\d s\n$/)
    expect(await run(['setup'])).toEqual({ status: 0, stdout: '', stderr: '' })
    writeFileSync(join(path, 'packages/cuda/native/new.cpp'), '')
    expect((await run(['setup'])).stderr).toMatch(/^set up host library/)
    rmSync(join(path, 'packages/cuda/lib/libckpt_host.so'))
    expect((await run(['setup'])).stderr).toMatch(/^set up host library/)
    expect(await Bun.file(join(path, 'packages/cuda/lib/log')).text()).toBe('built\n'.repeat(3))
  })

  test('a CUDA library that does not build is told, and no reason to stop', async () => {
    const { path, run } = clone({ bun: true })
    const nvcc = join(path, 'nvcc')
    writeFileSync(nvcc, '#!/bin/sh\n', { mode: 0o755 })
    const build = join(path, 'packages/cuda/native/build.sh')
    const host = await Bun.file(build).text()
    writeFileSync(build, `[ "$1" = cuda ] && echo nvcc says no && exit 7\n${host}`)
    const first = await run(['setup'], undefined, { CKPT_NVCC: nvcc })
    expect(first.status).toBe(0)
    expect(first.stderr).toContain('nvcc says no')
    expect(first.stderr).toMatch(/ckpt: no CUDA library: .*status 7/)
    expect(await run(['setup'], undefined, { CKPT_NVCC: nvcc })).toMatchObject({ stderr: '' })
  })

  test('a missing compiler is one line that says what to install', async () => {
    const { status, stdout, stderr } = await clone({ bun: true }).run(['setup'], [])
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' })
    expect(stderr.trim().split('\n').at(-1)).toMatch(
      /^ckpt: no C\+\+ compiler .*apt-get install g\+\+/,
    )
  })

  test('a missing npm is one line that says what to install', async () => {
    const { status, stderr } = await clone({ bun: false }).run(['setup'], [])
    expect(status).toBe(1)
    expect(stderr.trim().split('\n').at(-1)).toMatch(/^ckpt: npm was not found; install npm/)
  })

  test('a step that fails shows what it printed', async () => {
    const { path, run } = clone({ bun: true })
    writeFileSync(join(path, 'packages/cuda/native/build.sh'), 'echo the compiler says no; exit 7')
    const { status, stderr } = await run(['setup'])
    expect(status).toBe(1)
    expect(stderr).toContain('the compiler says no')
    expect(stderr).toContain('failed (status 7)')
  })

  test('an unknown task is wrong usage', async () => {
    expect((await clone({ bun: true }).run(['fly'])).status).toBe(2)
  })
})

describe.skipIf(NODE === null)('the last line of the tests', () => {
  const passing = "import { test } from 'bun:test'\ntest('a', () => {})\ntest.skip('b', () => {})\n"

  async function last(files: Record<string, string>, ...args: string[]) {
    const { path, run } = clone({ bun: true })
    for (const [name, text] of Object.entries(files)) writeFileSync(join(path, name), text)
    const { status, stdout } = await run(['test', ...args])
    return { status, line: stdout.trimEnd().split('\n').at(-1) }
  }

  test('counts what passed and was skipped', async () => {
    expect(await last({ 'one.test.ts': passing })).toEqual({
      status: 0,
      line: '1 passed, 0 failed, 1 skipped',
    })
  })

  test('counts what failed', async () => {
    const failing = "import { test } from 'bun:test'\ntest('c', () => { throw new Error('no') })\n"
    const { status, line } = await last({ 'one.test.ts': passing, 'two.test.ts': failing })
    expect(line).toBe('1 passed, 1 failed, 1 skipped')
    expect(status).toBe(1)
  })

  test('a file that does not load is a failure', async () => {
    const { status, line } = await last({
      'one.test.ts': passing,
      'two.test.ts': "import './none'",
    })
    expect(line).toMatch(/^1 passed, [1-9]\d* failed, 1 skipped$/)
    expect(status).not.toBe(0)
  })

  test('arguments go on to bun test', async () => {
    const files = { 'one.test.ts': passing, 'two.test.ts': "import './none'" }
    expect(await last(files, '--', 'one')).toEqual({
      status: 0,
      line: '1 passed, 0 failed, 1 skipped',
    })
  })
})
