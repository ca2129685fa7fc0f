//! Names of images, as Docker's reference grammar completes them.

/// The whole name of an image: registry, repository and tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io` where the name has none.
    pub registry: String,
    /// With `library/` where the registry is Docker's and the name has one part.
    pub repository: String,
    /// `latest` where the name has none.
    pub tag: String,
}

impl Reference {
    /// Completes a name; None if it names no tag but a digest, or has a character that a file's name must not have.
    pub fn parse(name: &str) -> Option<Self> {
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (name, "latest"),
        };
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            Some(_) => ("docker.io", path.to_owned()),
            None => ("docker.io", format!("library/{path}")),
        };
        let good = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
            !text.is_empty() && text.chars().all(allowed) && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
        };
        (good(registry) && good(&repository) && good(tag) && !name.contains('@')).then(|| Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.to_owned(),
        })
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn completes_names_as_docker_does() {
        for (name, whole) in [
            ("hashicorp/http-echo", "docker.io/hashicorp/http-echo:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("registry.k8s.io/gateway-api/echo-advanced:v1.5.1", "registry.k8s.io/gateway-api/echo-advanced:v1.5.1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("docker.io/nodemesh/agent:0.1.0", "docker.io/nodemesh/agent:0.1.0"),
        ] {
            assert_eq!(Reference::parse(name).unwrap().to_string(), whole);
        }
    }

    #[test]
    fn refuses_what_is_no_tag_or_leads_astray() {
        for name in ["a@sha256:00", "../x", "a/../b", "", "a b", "a//b"] {
            assert_eq!(Reference::parse(name), None, "{name}");
        }
    }
}
