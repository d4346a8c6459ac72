#!/usr/bin/env node
// Set-up of a fresh clone with node, npm and a C++ compiler and nothing else, then `demo` or `test`.
//   node scripts/run.mjs setup | demo [ARGS] | test [ARGS of bun test]
// Plain node 18, no dependencies: this file runs before anything is installed.

import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { constants as osConstants } from 'node:os'
import { delimiter, dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const cache = join(root, '.cache')
const nativeBuild = 'packages/cuda/native/build.sh'
const cudaHome = process.env.CUDA_HOME ?? '/usr/local/cuda'
const pinnedBun = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).devDependencies.bun

/** A reason to stop that is told in one line: what is missing and what to install. */
class SetUpError extends Error {}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error) => {
    process.stderr.write(`ckpt: ${error instanceof SetUpError ? error.message : error.stack}\n`)
    process.exit(1)
  },
)

async function main([task, ...args]) {
  // `npm run demo -- ARGS` hands over ARGS; a `--` that another runner leaves in front is dropped
  const rest = args[0] === '--' ? args.slice(1) : args
  if (Number(process.versions.node.split('.')[0]) < 18) {
    throw new SetUpError(`node ${process.versions.node} is too old; install node 18 or newer`)
  }
  if (!['setup', 'demo', 'test'].includes(task)) {
    process.stderr.write('usage: node scripts/run.mjs setup|demo|test [-- ARGS]\n')
    return 2
  }
  const bun = await setUp(task !== 'demo' || /\b(cuda|auto)\b/.test(rest.join(' ')))
  if (task === 'setup') return 0
  if (task === 'demo') return run(bun, ['packages/server/src/cli/main.ts', 'demo', ...rest])
  return test(bun, rest)
}

/**
 * Brings the clone into a runnable state and returns the path of the Bun binary.
 *
 * @param cuda whether the CUDA library is built too, where there is nvcc
 */
async function setUp(cuda) {
  const bun = findBun() ?? (await step(`bun ${pinnedBun}`, installBun))
  const packages = fingerprint(packageFiles())
  if (stampOf('packages') !== packages || !existsSync(join(root, 'node_modules'))) {
    await step('packages', () => quiet(bun, ['install', '--frozen-lockfile']))
    stamp('packages', packages)
  }
  const host = fingerprint(nativeSources())
  if (stampOf('host') !== host || !existsSync(join(root, 'packages/cuda/lib/libckpt_host.so'))) {
    needCompiler()
    await step('host library', () => quiet('bash', [nativeBuild, 'host']))
    stamp('host', host)
  }
  if (cuda) await setUpCuda()
  return bun
}

/** Everything but `--devices cuda` works without it, so a failure is told and no reason to stop. */
async function setUpCuda() {
  const nvcc = onPath(process.env.CKPT_NVCC ?? 'nvcc') ?? onPath(join(cudaHome, 'bin/nvcc'))
  if (nvcc === undefined) return
  const cuda = fingerprint(nativeSources(), [nvcc, process.env.CKPT_CUDA_ARCH ?? ''])
  if (stampOf('cuda') === cuda) return
  try {
    await step('cuda library', () => quiet('bash', [nativeBuild, 'cuda']))
  } catch (error) {
    process.stderr.write(`ckpt: no CUDA library: ${error.message}\n`)
  }
  stamp('cuda', cuda)
}

/** The pinned Bun that is already there: of this clone, of the cache, or on the PATH. */
function findBun() {
  const candidates = [...platformBinaries(root), ...platformBinaries(join(cache, 'bun'))]
  const installed = onPath('bun')
  if (installed) candidates.push(installed)
  return candidates.find((path) => {
    // a binary of another libc or for newer CPUs does not start, so it is asked instead of looked at
    const answer = spawnSync(path, ['--version'], { encoding: 'utf8' })
    return answer.status === 0 && answer.stdout.trim() === pinnedBun
  })
}

/** npm puts Bun's binary into one package a platform, `@oven/bun-linux-x64` and so on. */
function platformBinaries(prefix) {
  const scope = join(prefix, 'node_modules/@oven')
  if (!existsSync(scope)) return []
  return readdirSync(scope)
    .filter((name) => name.startsWith('bun-'))
    .map((name) => join(scope, name, 'bin/bun'))
    .filter((path) => existsSync(path))
}

async function installBun() {
  const npm = onPath('npm')
  if (!npm) throw new SetUpError('npm was not found; install npm (it comes with node)')
  const prefix = join(cache, 'bun')
  mkdirSync(prefix, { recursive: true })
  writeFileSync(join(prefix, 'package.json'), '{"private":true}\n')
  // into a folder of its own, because npm cannot read `workspace:*`; the binary needs no install script
  const options = [
    '--prefix',
    prefix,
    '--ignore-scripts',
    '--no-audit',
    '--no-fund',
    '--loglevel=error',
  ]
  await quiet(npm, ['install', ...options, `bun@${pinnedBun}`], prefix)
  const bun = findBun()
  if (bun) return bun
  throw new SetUpError(
    `npm brought no Bun ${pinnedBun} that runs here (${process.platform} ${process.arch})`,
  )
}

function needCompiler() {
  const wanted = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++']
  if (wanted.some((name) => onPath(name))) return
  const fix =
    'install one: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora, RHEL)'
  throw new SetUpError(`no C++ compiler was found (${wanted.join(', ')}); ${fix}`)
}

/** Runs a step and shows it as one line with its seconds, on stderr: stdout belongs to the task. */
async function step(name, work) {
  const start = process.hrtime.bigint()
  if (process.stderr.isTTY) process.stderr.write(`set up ${name} ...`)
  try {
    return await work()
  } finally {
    const seconds = Number(process.hrtime.bigint() - start) / 1e9
    const back = process.stderr.isTTY ? '\r\x1b[2K' : ''
    process.stderr.write(`${back}set up ${name.padEnd(16)} ${seconds.toFixed(1).padStart(5)} s\n`)
  }
}

/** Runs a command whose output is only shown when it fails. */
function quiet(command, args, cwd = root) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] })
    const output = []
    child.stdout.on('data', (chunk) => output.push(chunk))
    child.stderr.on('data', (chunk) => output.push(chunk))
    child.on('error', reject)
    child.on('close', (code) => {
      if (code === 0) return resolve()
      process.stderr.write(`\n${Buffer.concat(output)}`)
      reject(new SetUpError(`${[command, ...args].join(' ')} failed (status ${code})`))
    })
  })
}

/** Runs the task in the foreground; signals go on to it, its exit status becomes ours. */
function run(bun, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(bun, args, { cwd: root, stdio: 'inherit', env: environment(bun) })
    // a terminal sends Ctrl-C to the whole group; this only keeps us alive until the child has ended
    process.on('SIGINT', () => {})
    process.on('SIGTERM', () => child.kill('SIGTERM'))
    child.on('error', reject)
    child.on('close', (code, signal) => resolve(code ?? 128 + osConstants.signals[signal]))
  })
}

/** What runs below finds the same Bun and the workspace's commands first. */
function environment(bun) {
  const path = [dirname(bun), join(root, 'node_modules/.bin'), process.env.PATH].join(delimiter)
  return { ...process.env, PATH: path }
}

/** `bun test`, and one plain last line that a machine can read: `N passed, N failed[, N skipped]`. */
async function test(bun, args) {
  const report = join(cache, 'junit.xml')
  mkdirSync(cache, { recursive: true })
  rmSync(report, { force: true })
  // the default of 5 s is too short for tests that start processes on a busy machine
  const options = ['--timeout=60000', '--reporter=junit', `--reporter-outfile=${report}`]
  const code = await run(bun, ['test', ...options, ...args])
  const counts = existsSync(report) ? countTests(readFileSync(report, 'utf8')) : null
  const { passed, failed, skipped } = counts ?? { passed: 0, failed: 0, skipped: 0 }
  // a file that does not load has no test case in the report, but it is a failure
  const failures = code !== 0 && failed === 0 ? 1 : failed
  const skips = skipped > 0 ? `, ${skipped} skipped` : ''
  process.stdout.write(`${passed} passed, ${failures} failed${skips}\n`)
  return code !== 0 ? code : failures > 0 ? 1 : 0
}

function countTests(xml) {
  const totals = xml.match(/<testsuites\b[^>]*>/)?.[0] ?? ''
  const of = (name) => Number(totals.match(new RegExp(`\\b${name}="(\\d+)"`))?.[1] ?? 0)
  const failed = of('failures') + of('errors')
  const skipped = of('skipped')
  return { passed: of('tests') - failed - skipped, failed, skipped }
}

function packageFiles() {
  const folders = readdirSync(join(root, 'packages')).map((name) => join(root, 'packages', name))
  return [root, ...folders]
    .map((folder) => join(folder, 'package.json'))
    .concat(join(root, 'bun.lock'))
    .filter((path) => existsSync(path))
}

function nativeSources(folder = join(root, 'packages/cuda/native')) {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.name !== 'build' && entry.name !== 'tests')
    .flatMap((entry) => {
      const path = join(folder, entry.name)
      return entry.isDirectory() ? nativeSources(path) : [path]
    })
    .sort()
}

function fingerprint(files, more = []) {
  const hash = createHash('sha256')
  for (const text of more) hash.update(`${text}\0`)
  for (const path of files) hash.update(`${relative(root, path)}\0`).update(readFileSync(path))
  return hash.digest('hex')
}

function stampOf(name) {
  const path = join(root, 'node_modules', `.ckpt-${name}`)
  return existsSync(path) ? readFileSync(path, 'utf8') : null
}

function stamp(name, value) {
  mkdirSync(join(root, 'node_modules'), { recursive: true })
  writeFileSync(join(root, 'node_modules', `.ckpt-${name}`), value)
}

function onPath(name) {
  const candidates = name.includes('/')
    ? [name]
    : (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, name))
  return candidates.find((path) => {
    try {
      accessSync(path, constants.X_OK)
      return statSync(path).isFile()
    } catch {
      return false
    }
  })
}
